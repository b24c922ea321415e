/*
 * How many threads a machine has work for: cores this process may run on, and no more than its control group's share of
 * time. A container with 2 CPUs of 64 would otherwise get 64 threads that wait for one another.
 * SPDX-License-Identifier: MIT
 */
#if defined(__linux__)
#define _GNU_SOURCE /* sched_getaffinity */
#endif
#include "runtime/cpus.h"

#include "runtime/base.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The first line of a small file, or false. */
static bool read_line(const char *folder, const char *name, char *line, int size)
{
    char path[512];
    const int n = snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *const f = n > 0 && (size_t)n < sizeof path ? fopen(path, "re") : NULL;
    const bool ok = f && fgets(line, size, f);
    if (f) fclose(f);
    return ok;
}

/* The lowest allowed CPU of a list such as "0-1,64"; SQ_MAX_CPUS when there is none. */
static unsigned lowest_allowed(const char *list, const bool allowed[SQ_MAX_CPUS])
{
    char *end;
    for (;; list = end + 1) {
        const unsigned long first = strtoul(list, &end, 10);
        const unsigned long last = *end == '-' ? strtoul(end + 1, &end, 10) : first;
        for (unsigned long i = first; end != list && i <= last && i < SQ_MAX_CPUS; i++)
            if (allowed[i]) return (unsigned)i;
        if (*end != ',') return SQ_MAX_CPUS;
    }
}

unsigned sq_count_cores(const bool allowed[SQ_MAX_CPUS], const char *sysfs)
{
    unsigned n = 0;
    for (unsigned i = 0; i < SQ_MAX_CPUS; i++) {
        char name[64], line[256];
        if (!allowed[i]) continue;
        snprintf(name, sizeof name, "cpu%u/topology/thread_siblings_list", i);
        n += !read_line(sysfs, name, line, sizeof line) || lowest_allowed(line, allowed) >= i;
    }
    return n;
}

static unsigned rounded_up(double quota, double period)
{
    if (!(quota > 0 && period > 0 && quota / period < SQ_MAX_CPUS)) return 0;
    const unsigned whole = (unsigned)(quota / period);
    return whole < quota / period ? whole + 1 : whole;
}

unsigned sq_cpu_quota(const char *cgroup)
{
    char line[64], period[64];
    if (read_line(cgroup, "cpu.max", line, sizeof line)) {
        char *end;
        const double quota = strtod(line, &end); /* "max" is no number */
        return end == line ? 0 : rounded_up(quota, strtod(end, NULL));
    }
    if (!read_line(cgroup, "cpu/cpu.cfs_quota_us", line, sizeof line)) return 0;
    if (!read_line(cgroup, "cpu/cpu.cfs_period_us", period, sizeof period)) return 0;
    return rounded_up(strtod(line, NULL), strtod(period, NULL));
}

static unsigned count_cores(void)
{
#if defined(__linux__)
    cpu_set_t set;
    bool allowed[SQ_MAX_CPUS];
    if (!sched_getaffinity(0, sizeof set, &set)) {
        for (int i = 0; i < SQ_MAX_CPUS; i++)
            allowed[i] = i < CPU_SETSIZE && CPU_ISSET(i, &set);
        const unsigned n = sq_count_cores(allowed, "/sys/devices/system/cpu");
        if (n) return n;
    }
#endif
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (unsigned)n : 1;
}

unsigned sq_cpu_count(void)
{
    const unsigned cores = count_cores(), quota = sq_cpu_quota("/sys/fs/cgroup");
    return quota && quota < cores ? quota : cores;
}
