/*
 * Schedules: how much each layer keeps, spelled out by a caller.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_SCHEDULE_H
#define SQ_SCHEDULE_H

#include "runtime/base.h"

/**
 * Ratios of n_layers layers, l counting from 0 and L layers in all (p-MoD's progressive ratio decay, arXiv 2412.04449,
 * with the constant 31 of its code as L - 1):
 *
 *     cos:MAX:MIN      s = cos(pi l / (L - 1)) / 2 + factor; max(s, MIN) where s is at most MAX, else 1
 *     linear:MAX:MIN   s = 0.5 - l / (L - 1) + factor; the same
 *     const:R          R
 *     list:R,R,...     one a layer
 *
 * Numbers are decimals from 0 to 1.
 * @param ratio  [n_layers]
 * @return SQUINT_OK or _ARGUMENT, whose message begins "schedule: "
 */
squint_err sq_schedule_ratios(const char *text, double factor, uint32_t n_layers, double *ratio, squint_msg *msg);

#endif
