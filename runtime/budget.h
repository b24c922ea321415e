/*
 * Budgets: how much a session may keep to be done in time.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_BUDGET_H
#define SQ_BUDGET_H

#include "runtime/engine.h"

/* Of a first pass, the prefill. */
typedef struct sq_plan {
    squint_budget outcome;
    float keep;          /* for squint_session.keep */
    double predicted_ms; /* with it */
} sq_plan;

/**
 * The largest factor for the session's ratios with which a pass of n tokens, n_vision of them vision, should take no
 * longer than budget_ms, by s->cost and with a twentieth to spare: 1 where nothing need be cut, 0 where nothing helps.
 * A larger budget never gives a smaller factor.
 */
sq_plan sq_budget_choose(const squint_session *s, uint32_t n, uint32_t n_vision, double budget_ms);

#endif
