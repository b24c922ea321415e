/*
 * squint look: a trace as a page or a picture.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/image.h"
#include "tools/squint/cli.h"
#include "tools/squint/sight.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

typedef struct look_job {
    const char *trace, *picture;
    bool without;           /* pictures */
    const char *html, *png; /* files to write, or NULL */
    int what;
    unsigned width;
    sight *all;
    size_t n;
    char **paths;  /* [n] of the pictures */
    uint8_t **rgb; /* [n], NULL without */
} look_job;

/* ---- Pictures ------------------------------------------------------------------------------ */

static char *joined(const char *folder, int folder_bytes, const char *name)
{
    const size_t size = (size_t)folder_bytes + strlen(name) + 2;
    char *const out = cli_alloc(size, 1);
    snprintf(out, size, "%.*s%s", folder_bytes, folder, name);
    return out;
}

/* Where the trace says, seen from here or from the trace's folder. */
static char *find_picture(const look_job *job, const sight *s)
{
    const char *const named = job->picture ? job->picture : s->file, *const slash = strrchr(job->trace, '/');
    if (job->picture || *named == '/' || !slash || !access(named, R_OK)) return joined("", 0, named);
    char *const beside = joined(job->trace, (int)(slash + 1 - job->trace), named);
    if (!access(beside, R_OK)) return beside;
    free(beside);
    return joined("", 0, named);
}

static uint8_t *grey_plane(const squint_grid *g)
{
    const size_t bytes = 3 * (size_t)g->picture_w * g->picture_h;
    return memset(cli_alloc(bytes, 1), 0x80, bytes);
}

/* malloc'ed; NULL, with a message, when it is not there or not the one that was captioned. */
static uint8_t *read_picture(const look_job *job, const sight *s, const char *path)
{
    const squint_allocator a = sq_allocator_or_default(NULL);
    sq_image image;
    squint_msg msg;
    if (!strcmp(path, "-")) {
        cli_say("%s: the picture came from standard input; name it with --picture FILE, or say --no-picture",
                job->trace);
        return NULL;
    }
    if (sq_image_read(&image, path, &a, &msg)) {
        cli_say("%.300s (named by %s; --picture FILE names another, --no-picture does without)", msg.text, job->trace);
        return NULL;
    }
    if (image.w == s->grid.picture_w && image.h == s->grid.picture_h) return image.rgb;
    cli_say("%s has %u x %u pixels, the picture of %s has %u x %u", path, image.w, image.h, job->trace,
            s->grid.picture_w, s->grid.picture_h);
    sq_image_free(&image, &a);
    return NULL;
}

static bool read_pictures(look_job *job)
{
    job->paths = cli_alloc(job->n, sizeof *job->paths);
    job->rgb = cli_alloc(job->n, sizeof *job->rgb);
    if (job->picture && job->n > 1) {
        cli_say("--picture: one file, but %s has %zu pictures", job->trace, job->n);
        return false;
    }
    for (size_t i = 0; i < job->n; i++) {
        job->paths[i] = find_picture(job, &job->all[i]);
        if (!job->without && !(job->rgb[i] = read_picture(job, &job->all[i], job->paths[i]))) return false;
    }
    return true;
}

/* ---- The work ------------------------------------------------------------------------------ */

static bool paint(const look_job *job, size_t i, const char *name)
{
    const sight *const s = &job->all[i];
    uint8_t *const grey = job->rgb[i] ? NULL : grey_plane(&s->grid);
    canvas c;
    look_paint(&c, s, grey ? grey : job->rgb[i], job->what, job->width);
    const bool saved = canvas_save_png(&c, name);
    canvas_close(&c);
    free(grey);
    return saved;
}

static int paint_all(const look_job *job)
{
    const int n = (int)job->n;
    bool saved = true;
    for (int i = 0; i < n; i++)
        if (!look_check(&job->all[i], job->what, job->trace)) return CLI_FAILED;
    char **const names = output_names("--png", job->png, job->paths, n);
    if (!names) return CLI_MISUSED;
    for (int i = 0; i < n && saved; i++)
        saved = paint(job, (size_t)i, names[i]);
    output_names_free(names, n);
    return saved ? CLI_DONE : CLI_FAILED;
}

static int write_all(look_job *job)
{
    if (!trace_read(job->trace, &job->all, &job->n) || !read_pictures(job)) return CLI_FAILED;
    if (!cli_spares("--html", job->html, "one of the pictures", (const char *const *)job->paths, job->n))
        return CLI_MISUSED;
    if (job->html && !page_write(job->html, job->all, (const uint8_t *const *)job->rgb, job->n)) return CLI_FAILED;
    return job->png ? paint_all(job) : CLI_DONE;
}

static void free_job(look_job *job)
{
    for (size_t i = 0; i < job->n; i++) {
        if (job->paths) free(job->paths[i]);
        if (job->rgb) free(job->rgb[i]);
    }
    free(job->paths);
    free(job->rgb);
    trace_free(job->all, job->n);
}

/* ---- Options ------------------------------------------------------------------------------- */

static bool ends_in(const char *text, const char *end)
{
    const size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcasecmp(text + n - m, end);
}

/* "folder/trace.json" with another ending. */
static char *beside_trace(const char *trace, const char *ending)
{
    const size_t n = strlen(trace) - (ends_in(trace, ".json") ? 5 : 0);
    return joined(trace, (int)n, ending);
}

static int look(const cli_command *self, look_job *job, bool html, bool png, char **files, int n)
{
    for (int i = 0; i < n; i++) {
        const bool page = ends_in(files[i], ".html") || ends_in(files[i], ".htm");
        const char **const file = page ? &job->html : &job->png;
        if (*file) return cli_misuse(self, "look: %s and %s: one file of a kind", *file, files[i]);
        *file = files[i];
    }
    if (!html && !png && !n) return cli_misuse(self, "look: what to write? --html, --png, or a file's name");
    char *const own_html = beside_trace(job->trace, ".html"), *const own_png = beside_trace(job->trace, ".png");
    if (html && !job->html) job->html = own_html;
    if (png && !job->png) job->png = own_png;
    const bool spared = cli_spares("look", job->html, "the trace", &job->trace, 1) &&
                        cli_spares("look", job->png, "the trace", &job->trace, 1);
    const int status = spared ? write_all(job) : CLI_MISUSED;
    free_job(job);
    free(own_html);
    free(own_png);
    return status;
}

static int run(const cli_command *self, int argc, char **argv)
{
    bool html = false, png = false;
    const char *layer = "all";
    look_job job = {.width = LOOK_WIDTH};
    const cli_option options[] = {
        CLI_ROW_FLAG(0, "html", &html, "write a page with a slider over the layers (default name: TRACE.html)"),
        CLI_ROW_FLAG(0, "png", &png, "write a picture (default name: TRACE.png)"),
        CLI_ROW_TEXT(0, "picture", &job.picture, "FILE", "the picture, if it is no longer where the trace says"),
        CLI_ROW_FLAG(0, "no-picture", &job.without, "do without the picture"),
        CLI_ROW_TEXT(0, "layer", &layer, "L", "of --png: all, sum, or one layer's number (default: all)"),
        CLI_ROW_NUMBER(0, "width", &job.width, LOOK_MIN_WIDTH, LOOK_MAX_WIDTH, NULL, "N",
                       "of --png: width in pixels (default: 960)"),
        CLI_ROW_END,
    };
    int first, status;
    if (!cli_parse(self, options, argc, argv, &first, &status)) return status;
    if (first == argc) return cli_misuse(self, "look: which trace?");
    if (!look_parse(layer, &job.what))
        return cli_misuse(self, "--layer: \"%s\" is none of: all, sum, a layer's number", layer);
    job.trace = argv[first];
    return look(self, &job, html, png, argv + first + 1, argc - first - 1);
}

const cli_command look_command = {
    .name = "look",
    .operands = "TRACE [FILE...]",
    .summary = "show what a model looked at, as a page or a picture",
    .details = "Reads what squint caption --trace wrote. FILE ends in .html for a page, in .png for a picture; the\n"
               "page needs nothing else: it has the pictures in it, made smaller, without their folders and EXIF.\n"
               "Pictures are looked for where the trace names them, then beside the trace. For --png of several,\n"
               "%s in FILE stands for a picture's name, or FILE is a folder.",
    .run = run,
};
