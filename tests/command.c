/* SPDX-License-Identifier: MIT */
#include "tests/command.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* The machine fails, not the command. */
static _Noreturn void give_up(const char *what)
{
    perror(what);
    abort();
}

static int temp_file(void)
{
    FILE *f = tmpfile();
    const int fd = f ? dup(fileno(f)) : -1;
    if (fd < 0) give_up("tmpfile");
    fclose(f);
    return fd;
}

static int open_or_abort(const char *path, int flags)
{
    const int fd = open(path, flags);
    if (fd < 0) give_up(path);
    return fd;
}

static pid_t spawn(const char *const *args, int in, int out, int err)
{
    const char *exe = getenv("SQUINT_EXE");
    if (!exe) give_up("SQUINT_EXE");
    const char *argv[COMMAND_MAX_ARGS + 2] = {exe};
    for (size_t i = 0; args[i] && i < COMMAND_MAX_ARGS; i++)
        argv[i + 1] = args[i];
    const pid_t pid = fork();
    if (pid < 0) give_up("fork");
    if (pid) return pid;
    dup2(in, STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    if (err >= 0) dup2(err, STDERR_FILENO);
    execv(exe, (char *const *)(size_t)argv);
    _exit(127);
}

int wait_squint(pid_t pid)
{
    int status;
    if (waitpid(pid, &status, 0) != pid) give_up("waitpid");
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* Everything in the file, which is closed. */
static char *take_text(int fd)
{
    const off_t size = lseek(fd, 0, SEEK_END);
    char *text = calloc((size_t)size + 1, 1);
    if (size < 0 || !text || pread(fd, text, (size_t)size, 0) != size) give_up("what a command printed");
    close(fd);
    return text;
}

static command_result run(const char *input, const char *output, const char *const *args)
{
    const int in = open_or_abort(input ? input : "/dev/null", O_RDONLY);
    const int out = output ? open_or_abort(output, O_WRONLY) : temp_file(), err = temp_file();
    command_result r = {.status = wait_squint(spawn(args, in, out, err))};
    close(in);
    if (output) close(out);
    r.out = output ? calloc(1, 1) : take_text(out);
    r.err = take_text(err);
    return r;
}

command_result run_squint(const char *input, const char *const *args) { return run(input, NULL, args); }

command_result run_squint_to(const char *output, const char *const *args) { return run(NULL, output, args); }

void command_result_free(command_result *r)
{
    free(r->out);
    free(r->err);
}

pid_t start_squint(const char *const *args, int *to_stdin, int *from_stdout)
{
    int in[2], out[2];
    if (pipe(in) || pipe(out)) give_up("pipe");
    fcntl(in[1], F_SETFD, FD_CLOEXEC);
    fcntl(out[0], F_SETFD, FD_CLOEXEC);
    const pid_t pid = spawn(args, in[0], out[1], -1);
    close(in[0]);
    close(out[1]);
    *to_stdin = in[1];
    *from_stdout = out[0];
    return pid;
}

void check_refused(int status, const char *said, command_result r)
{
    if (r.status != status || !strstr(r.err, said) || count_lines(r.err) != 1)
        fail_msg("exit %d, not %d; it said: %s", r.status, status, r.err);
    assert_string_equal(r.out, "");
    command_result_free(&r);
}

size_t count_lines(const char *text)
{
    size_t n = 0;
    for (; *text; text++)
        if (*text == '\n' || !text[1]) n++;
    return n;
}
