/*
 * How many threads a machine has work for.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_CPUS_H
#define SQ_CPUS_H

#include <stdbool.h>

enum { SQ_MAX_CPUS = 1024 };

/**
 * Cores that the allowed CPUs belong to: of two hardware threads of one core only one counts, since one keeps the
 * multipliers busy. A CPU whose siblings `sysfs` does not tell counts as a core.
 * @param sysfs  /sys/devices/system/cpu, or what stands for it in a test
 */
unsigned sq_count_cores(const bool allowed[SQ_MAX_CPUS], const char *sysfs);

/** CPUs that the control group may use at once, rounded up; 0: no limit, or none known.
 * @param cgroup  /sys/fs/cgroup, as a container sees its own; version 2 (cpu.max) or 1 (cpu/cpu.cfs_quota_us) */
unsigned sq_cpu_quota(const char *cgroup);

#endif
