/*
 * Pictures with captions that people wrote, listed in a JSONL file.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQUINT_DATASET_H
#define SQUINT_DATASET_H

#include <stdbool.h>
#include <stddef.h>

typedef struct sample {
    char *file;      /* as the list names it */
    char *path;      /* of the picture */
    char **captions; /* [n_captions], at least one */
    size_t n_captions;
} sample;

typedef struct dataset {
    sample *samples;
    size_t n;
    char *list; /* the file that was read */
} dataset;

/**
 * Reads {"file": "x.jpg", "captions": ["...", ...]} lines; other keys are ignored. Files are relative to the
 * list's folder.
 *
 * @param path   of a list, or of a folder with a captions.jsonl
 * @param split  NULL, or only lines whose "split" is this
 * @param limit  0, or how many lines to take at most
 * @return false, with a message that names the line, when it cannot be read or is empty
 */
bool dataset_read(dataset *d, const char *path, const char *split, size_t limit);
void dataset_free(dataset *d);

#endif
