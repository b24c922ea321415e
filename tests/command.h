/*
 * Running the squint command from a test.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_TEST_COMMAND_H
#define SQ_TEST_COMMAND_H

#include <stddef.h>
#include <sys/types.h>

enum { COMMAND_MAX_ARGS = 32 };

typedef struct command_result {
    int status;      /* exit status; 128 + signal when one ended it */
    char *out, *err; /* what it wrote, terminated */
} command_result;

/** Runs $SQUINT_EXE with these arguments (NULL at the end) and waits. `input` is a file for its standard input, or
 *  NULL for none. */
command_result run_squint(const char *input, const char *const *args);
/** The same with standard output going to this file. */
command_result run_squint_to(const char *output, const char *const *args);
void command_result_free(command_result *r);
/** It said nothing but one line, with `said` in it, and ended with this status; fails the test otherwise. Frees it. */
void check_refused(int status, const char *said, command_result r);

/** Starts it with both ends of standard input and output in the caller's hands. */
pid_t start_squint(const char *const *args, int *to_stdin, int *from_stdout);
/** Exit status as in command_result. */
int wait_squint(pid_t pid);

/** Number of lines; text after the last newline counts as one. */
size_t count_lines(const char *text);

#define RUN(...) run_squint(NULL, (const char *const[]){__VA_ARGS__, NULL})

#endif
