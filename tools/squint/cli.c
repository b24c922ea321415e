/*
 * Options, numbers, messages and files of the command line.
 * SPDX-License-Identifier: MIT
 */
#include "tools/squint/cli.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_OPTIONS = 40, LONG_ONLY = 256, HELP_COLUMN = 22, LINE_CAP = 16 << 20 };

const char *const cli_kv_words[] = {"auto", "f16", "f32", "q8", NULL};

static const char default_model[] = "squint-caption-pmod-q4.gguf";

/* ---- Messages ------------------------------------------------------------------------------ */

static void print_line(const char *format, va_list args)
{
    char text[1200];
    vsnprintf(text, sizeof text, format, args);
    for (char *c = text; *c; c++)
        if (iscntrl((unsigned char)*c)) *c = '?';
    cli_bar_clear();
    fprintf(stderr, "squint: %s\n", text);
}

void cli_say(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_line(format, args);
    va_end(args);
}

void cli_note(void *unused, const char *text)
{
    (void)unused;
    cli_say("%s", text);
}

const char *cli_runner(const squint_session *session, const squint_model *model, char out[160])
{
    const char *const device = squint_model_device(model);
    const unsigned threads = squint_session_threads(session);
    const bool on_cpu = !strncmp(device, "cpu", 3), expanded = on_cpu && device[3];
    if (on_cpu)
        snprintf(out, 160, "%s%s%s, %u thread%s", expanded ? device : "", expanded ? ", " : "", squint_model_isa(model),
                 threads, threads == 1 ? "" : "s");
    else
        snprintf(out, 160, "%s", device);
    return out;
}

void cli_tell_mode(const squint_model *model)
{
    const char *const mode = squint_model_mode(model), *const own = squint_model_own_mode(model);
    if (strcmp(mode, own)) cli_say("runs in mode %s, as asked; the model's own is %s", mode, own);
}

int cli_misuse(const cli_command *command, const char *format, ...)
{
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    cli_say("%s (see squint %s --help)", text, command->name);
    return CLI_MISUSED;
}

int cli_fail(squint_err err, const squint_msg *msg)
{
    if (err == SQUINT_ERR_CANCELLED) return CLI_INTERRUPTED;
    cli_say("%s", msg->text);
    return err == SQUINT_ERR_ARGUMENT ? CLI_MISUSED : CLI_FAILED;
}

bool cli_flush(void)
{
    static bool told;
    if (!fflush(stdout) && !ferror(stdout)) return true;
    if (!told && errno != EPIPE) cli_say("standard output: %s", strerror(errno));
    told = true;
    return false;
}

void *cli_alloc(size_t n, size_t size)
{
    void *memory = calloc(n ? n : 1, size);
    if (!memory) {
        cli_say("out of memory");
        exit(CLI_FAILED);
    }
    return memory;
}

void *cli_grow(void *memory, size_t n, size_t size)
{
    if (n > SIZE_MAX / size || !(memory = realloc(memory, n * size))) {
        cli_say("out of memory");
        exit(CLI_FAILED);
    }
    return memory;
}

/* ---- Ctrl-C -------------------------------------------------------------------------------- */

static volatile sig_atomic_t interrupted;
static squint_session *volatile watched;
/* A byte in it is a Ctrl-C: poll() sees one that came before the wait or to another thread, where read() sees neither.
 */
static int interrupt_pipe[2] = {-1, -1};

static void on_interrupt(int signal_number)
{
    (void)signal_number;
    interrupted = 1;
    if (watched) squint_session_cancel(watched);
    const int saved = errno;
    (void)!write(interrupt_pipe[1], "", 1); /* once at most: the handler is reset */
    errno = saved;
}

void cli_watch_interrupts(squint_session *session)
{
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND};
    sigemptyset(&action.sa_mask);
    if (interrupt_pipe[0] < 0 && pipe(interrupt_pipe)) {
        cli_say("no pipe: %s", strerror(errno));
        exit(CLI_FAILED);
    }
    watched = session;
    sigaction(SIGINT, &action, NULL);
}

void cli_unwatch_interrupts(void)
{
    signal(SIGINT, SIG_DFL);
    watched = NULL;
}

bool cli_interrupted(void) { return interrupted; }

/* ---- Numbers ------------------------------------------------------------------------------- */

bool cli_number(const char *text, uint64_t min, uint64_t max, uint64_t *out)
{
    if (!isdigit((unsigned char)*text)) return false;
    char *end;
    errno = 0;
    const unsigned long long v = strtoull(text, &end, 10);
    if (*end || errno || v < min || v > max) return false;
    *out = v;
    return true;
}

bool cli_real(const char *text, double min, double max, double *out)
{
    if (!*text || text[strspn(text, "0123456789.eE+-")]) return false;
    char *end;
    const double v = strtod(text, &end);
    if (*end || !isfinite(v) || v < min || v > max) return false;
    *out = v;
    return true;
}

bool cli_time(const char *text, double *ms)
{
    enum { DAY_S = 24 * 60 * 60 };
    const size_t n = strcspn(text, "ms");
    const bool seconds = !strcmp(text + n, "s");
    char number[32];
    if ((!seconds && strcmp(text + n, "ms")) || n >= sizeof number) return false;
    memcpy(number, text, n);
    number[n] = 0;
    double value;
    if (!cli_real(number, 0, seconds ? DAY_S : DAY_S * 1000.0, &value) || !(value > 0)) return false;
    *ms = seconds ? 1000 * value : value;
    return true;
}

/* ---- Options ------------------------------------------------------------------------------- */

static void print_option(const cli_option *o)
{
    const int n = o->letter ? printf("  -%c, --%s", o->letter, o->name) : printf("  --%s", o->name);
    const int m = o->value ? printf(" %s", o->value) : 0;
    if (n + m + 2 > HELP_COLUMN)
        printf("\n%*s%s\n", HELP_COLUMN, "", o->help);
    else
        printf("%*s%s\n", HELP_COLUMN - n - m, "", o->help);
}

static void print_help(const cli_command *c, const cli_option *options)
{
    printf("usage: squint %s [options] %s\n\n%s\n\noptions:\n", c->name, c->operands, c->details);
    for (const cli_option *o = options; o->name; o++)
        print_option(o);
    printf("  -h, --help%*sthis text\n", HELP_COLUMN - 12, "");
}

/* "f16, f32" */
static void list_words(const char *const *words, char *out, size_t size)
{
    size_t used = 0;
    out[0] = 0;
    for (; *words && used < size; words++)
        used += (size_t)snprintf(out + used, size - used, "%s%s", used ? ", " : "", *words);
}

static int bad_value(const cli_option *o, const char *text)
{
    const char *open = o->note ? " (" : "", *note = o->note ? o->note : "", *close = o->note ? ")" : "";
    char words[256];
    switch (o->kind) {
    case CLI_CHOICE:
        list_words(o->words, words, sizeof words);
        cli_say("--%s: \"%s\" is none of: %s", o->name, text, words);
        break;
    case CLI_TIME:
        cli_say("--%s: \"%s\" is not a time like 900ms or 1.5s", o->name, text);
        break;
    case CLI_SEED:
        cli_say("--%s: \"%s\" is not a number from 0 to %llu", o->name, text, (unsigned long long)UINT64_MAX);
        break;
    default:
        cli_say("--%s: \"%s\" is not a number from %.10g to %.10g%s%s%s", o->name, text, o->min, o->max, open, note,
                close);
    }
    return CLI_MISUSED;
}

static bool set_choice(const cli_option *o, const char *text)
{
    for (unsigned i = 0; o->words[i]; i++)
        if (!strcmp(o->words[i], text)) return *(unsigned *)o->out = i, true;
    return false;
}

/* Every kind but flags has text here. */
static bool set_option(const cli_option *o, const char *text)
{
    uint64_t number;
    double real;
    switch (o->kind) {
    case CLI_FLAG:
        *(bool *)o->out = true;
        return true;
    case CLI_TEXT:
        *(const char **)o->out = text;
        return true;
    case CLI_NUMBER:
        if (!cli_number(text, (uint64_t)o->min, (uint64_t)o->max, &number)) return false;
        *(unsigned *)o->out = (unsigned)number;
        return true;
    case CLI_SEED:
        return cli_number(text, 0, UINT64_MAX, o->out);
    case CLI_REAL:
        if (!cli_real(text, o->min, o->max, &real)) return false;
        *(float *)o->out = (float)real;
        return true;
    case CLI_CHOICE:
        return set_choice(o, text);
    case CLI_TIME:
        return cli_time(text, o->out);
    }
    return false;
}

/* getopt's tables for ours: option i has the value i + LONG_ONLY, or its letter. */
typedef struct getopt_tables {
    struct option longs[MAX_OPTIONS + 2];
    char letters[2 * MAX_OPTIONS + 4];
    size_t n;
} getopt_tables;

static void fill_tables(const cli_option *options, getopt_tables *t)
{
    char *l = t->letters;
    *l++ = ':'; /* a missing value is told apart from an unknown option */
    for (t->n = 0; options[t->n].name && t->n < MAX_OPTIONS; t->n++) {
        const cli_option *o = &options[t->n];
        t->longs[t->n] = (struct option){o->name, o->kind == CLI_FLAG ? no_argument : required_argument, NULL,
                                         LONG_ONLY + (int)t->n};
        if (!o->letter) continue;
        *l++ = o->letter;
        if (o->kind != CLI_FLAG) *l++ = ':';
    }
    t->longs[t->n] = (struct option){"help", no_argument, NULL, 'h'};
    t->longs[t->n + 1] = (struct option){0};
    *l++ = 'h';
    *l = 0;
}

static const cli_option *find_option(const cli_option *options, size_t n, int value)
{
    for (size_t i = 0; i < n; i++)
        if (value == LONG_ONLY + (int)i || (options[i].letter && value == options[i].letter)) return &options[i];
    return NULL;
}

static int bad_option(const cli_command *command, const cli_option *options, size_t n, int c, char **argv)
{
    const cli_option *o = find_option(options, n, optopt);
    if (c == ':') return cli_misuse(command, "--%s needs a value", o->name);
    if (o) return cli_misuse(command, "--%s takes no value", o->name);
    if (optopt && optopt != 'h') return cli_misuse(command, "unknown option \"-%c\"", optopt);
    return cli_misuse(command, "unknown option \"%s\"", argv[optind - 1]);
}

bool cli_parse(const cli_command *command, const cli_option *options, int argc, char **argv, int *first, int *status)
{
    getopt_tables t;
    fill_tables(options, &t);
    opterr = 0;
    int c;
    while ((c = getopt_long(argc, argv, t.letters, t.longs, NULL)) != -1) {
        const cli_option *o = find_option(options, t.n, c);
        if (c == 'h') {
            print_help(command, options);
            *status = cli_flush() ? CLI_DONE : CLI_FAILED;
            return false;
        }
        if (!o) {
            *status = bad_option(command, options, t.n, c, argv);
            return false;
        }
        if (!set_option(o, optarg)) {
            *status = bad_value(o, optarg);
            return false;
        }
    }
    *first = optind;
    return true;
}

/* ---- Quantities ---------------------------------------------------------------------------- */

const char *cli_short_count(double n, char out[32])
{
    static const char *const units[] = {"", " k", " M", " G", " T"};
    size_t unit = 0;
    while (n >= 999.5 && unit + 1 < sizeof units / sizeof *units) {
        n /= 1000;
        unit++;
    }
    snprintf(out, 32, "%.*f%s", !unit || n >= 99.95 ? 0 : n >= 9.995 ? 1 : 2, n, units[unit]);
    return out;
}

const char *cli_short_bytes(double n, char out[32])
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB"};
    size_t unit = 0;
    while (n >= 1024 && unit + 1 < sizeof units / sizeof *units) {
        n /= 1024;
        unit++;
    }
    snprintf(out, 32, unit ? "%.1f %s" : "%.0f %s", n, units[unit]);
    return out;
}

/* ---- Files --------------------------------------------------------------------------------- */

static char program_dir[2048];

void cli_set_program(const char *argv0)
{
    ssize_t n = readlink("/proc/self/exe", program_dir, sizeof program_dir - 1);
    if (n < 0) n = snprintf(program_dir, sizeof program_dir, "%s", strchr(argv0, '/') ? argv0 : "");
    if ((size_t)n >= sizeof program_dir) n = 0;
    program_dir[n] = 0;
    char *slash = strrchr(program_dir, '/');
    *(slash ? slash : program_dir) = 0;
}

const char *cli_model_path(const char *given)
{
    static char path[sizeof program_dir + 64];
    /* beside the program, installed, and in the source tree of a build folder */
    static const char *const places[] = {"", "../share/squint/", "../../../models/"};
    if (given) return given;
    const char *env = getenv("SQUINT_MODEL");
    if (env && *env) return env;
    for (size_t i = 0; *program_dir && i < sizeof places / sizeof *places; i++) {
        snprintf(path, sizeof path, "%s/%s%s", program_dir, places[i], default_model);
        if (!access(path, R_OK)) return path;
    }
    cli_say("no model: %s is not installed; name one with -m FILE or SQUINT_MODEL", default_model);
    return NULL;
}

bool cli_same_file(const char *a, const char *b)
{
    struct stat x, y;
    if (!strcmp(a, b)) return true;
    return !stat(a, &x) && S_ISREG(x.st_mode) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

bool cli_spares(const char *option, const char *output, const char *what, const char *const *inputs, size_t n)
{
    for (size_t i = 0; output && i < n; i++) {
        if (!inputs[i] || !cli_same_file(output, inputs[i])) continue;
        cli_say("%s: %s is %s, and would be overwritten", option, output, what);
        return false;
    }
    return true;
}

/* What standard input has, 0 at its end, -1 on errors and on Ctrl-C. */
static ssize_t read_some(uint8_t *to, size_t room)
{
    struct pollfd wait[] = {{.fd = STDIN_FILENO, .events = POLLIN}, {.fd = interrupt_pipe[0], .events = POLLIN}};
    while (poll(wait, 2, -1) < 0) {
        if (errno != EINTR) return -1;
    }
    if (wait[1].revents) return errno = EINTR, -1;
    return read(STDIN_FILENO, to, room);
}

squint_err cli_read_stdin(size_t cap, uint8_t **data, size_t *size, squint_msg *msg)
{
    size_t room = 1 << 16, n = 0;
    ssize_t got = 0;
    uint8_t *bytes = cli_alloc(room, 1);
    while (n <= cap && (got = read_some(bytes + n, room - n)) > 0) {
        n += (size_t)got;
        if (n == room) bytes = cli_grow(bytes, room *= 2, 1);
    }
    if (n <= cap && !got) return *data = bytes, *size = n, SQUINT_OK;
    if (n > cap)
        snprintf(msg->text, sizeof msg->text, "standard input: more than %zu MiB", cap >> 20);
    else
        snprintf(msg->text, sizeof msg->text, "standard input: %s", strerror(errno));
    free(bytes);
    return SQUINT_ERR_IO;
}

bool cli_read_line(FILE *f, const char *name, char **line, size_t *capacity, size_t *length, bool *failed)
{
    size_t n = 0;
    int c = 0;
    *failed = false;
    while ((c = getc(f)) != EOF && c != '\n') {
        if (n == LINE_CAP) {
            cli_say("%s: a line of more than %d MiB", name, LINE_CAP >> 20);
            *failed = true;
            return false;
        }
        if (n + 1 >= *capacity) *line = cli_grow(*line, *capacity = *capacity ? 2 * *capacity : 1024, 1);
        (*line)[n++] = (char)c;
    }
    if (ferror(f)) {
        cli_say("%s: %s", name, strerror(errno));
        *failed = true;
        return false;
    }
    if (c == EOF && !n) return false;
    if (!*capacity) *line = cli_grow(*line, *capacity = 1024, 1);
    (*line)[n] = 0;
    *length = n;
    return true;
}
