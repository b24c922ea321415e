/*
 * The families that this build knows.
 * SPDX-License-Identifier: MIT
 */
#include "models/llava.h"

const sq_family *const sq_families[] = {&sq_family_llava, NULL};
