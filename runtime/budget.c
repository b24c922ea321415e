/*
 * Budgets: how much a session may keep to be done in time.
 * SPDX-License-Identifier: MIT
 */
#include "runtime/budget.h"

enum { HALVINGS = 20 }; /* below a token of a million */

/* Predictions are some hundredths off to both sides, and a budget is a promise. */
static const double AIM = 0.95;

sq_plan sq_budget_choose(const squint_session *s, uint32_t n, uint32_t n_vision, double budget_ms)
{
    double (*const predict)(const squint_session *, uint32_t, uint32_t, float) = s->model->family->predict_ms;
    const double aim = AIM * budget_ms;
    const double most = predict(s, n, n_vision, 1.0f), least = predict(s, n, n_vision, 0.0f);
    if (most <= aim) return (sq_plan){SQUINT_BUDGET_AMPLE, 1.0f, most};
    if (least > aim) return (sq_plan){SQUINT_BUDGET_TOO_SMALL, 0.0f, least};
    float fits = 0, does_not = 1;
    for (int i = 0; i < HALVINGS; i++) {
        const float middle = (fits + does_not) / 2;
        if (predict(s, n, n_vision, middle) <= aim)
            fits = middle;
        else
            does_not = middle;
    }
    return (sq_plan){SQUINT_BUDGET_CUT, fits, predict(s, n, n_vision, fits)};
}
