/*
 * Work that a caption took, and that skipping saved.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQUINT_WORK_H
#define SQUINT_WORK_H

#include "tools/squint/cli.h"

/** {"tower_macs", "prefill_macs", "prefill_macs_skipped", "decode_macs", "decode_macs_skipped", "kv_bytes",
 *   "kv_bytes_skipped", "layer": [{"vision_tokens", "prompt_tokens", "generated_tokens", "prefill_macs", "decode_macs",
 *   "kv_bytes"}]}: what was done, a layer's tokens being those it ran; and what a dense model would have done more. */
cJSON *work_json(const squint_session *session, const squint_result *r);

/** The same as a block of lines on stderr. */
void work_print(const squint_session *session, const squint_result *r, const char *picture);

#endif
