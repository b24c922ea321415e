/*
 * Text as it grows: bytes of tokens in, whole characters out.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_TEXT_H
#define SQ_TEXT_H

#include "runtime/base.h"

/*
 * `text` holds what is finished, then bytes whose right to stay is open: white space that only counts when something
 * follows it, and what may become the text that ends an answer. The bytes of an unfinished character wait in `open`.
 */
typedef struct sq_text {
    char *text;                                                  /* 3 bytes for each that comes, and one */
    const char *stop;                                            /* text that ends an answer and is cut off; "": none */
    bool (*on_text)(void *user, const char *text, size_t bytes); /* NULL: nobody listens */
    void *user;
    /* Zero at first. */
    size_t len, sent; /* bytes in `text`, and of them given to on_text */
    char open[4];
    unsigned n_open;
    bool ended;   /* the stop text came: what follows is lost */
    bool stopped; /* on_text returned false, and is told no more */
} sq_text;

/** Bytes of a token; on_text hears what is now sure. */
void sq_text_append(sq_text *t, const char *bytes, size_t n);
/** What was open is decided and the text terminated, without white space at its ends. */
void sq_text_finish(sq_text *t);

#endif
