/*
 * The program of squint.h's first comment: it needs that header and the shared library alone.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/squint.h"

#include <stdio.h>

int main(int argc, char **argv)
{
    squint_model *model;
    squint_session *session;
    squint_result result;
    squint_msg msg;
    int status = 1;

    if (argc != 3) return 1;
    if (squint_model_open(&model, argv[1], NULL, &msg) != SQUINT_OK) {
        puts(msg.text);
        return 1;
    }
    if (squint_session_open(&session, model, NULL, &msg) == SQUINT_OK) {
        if (squint_caption_file(session, argv[2], NULL, &result, &msg) == SQUINT_OK) {
            puts(result.text);
            status = 0;
        }
        squint_session_close(&session);
    }
    squint_model_close(&model);
    if (status) puts(msg.text);
    return status;
}
