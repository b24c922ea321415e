/*
 * What the files of the emulator share.
 * SPDX-License-Identifier: MIT
 */
#ifndef SQ_EMULATOR_MACHINE_H
#define SQ_EMULATOR_MACHINE_H

#include "cuda_runtime.h"
#include "tests/cuda/emulator.h"

#include <functional>

/* Says what is wrong with the program under test, and aborts. */
[[noreturn]] void emulator_die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Rising, falling, or some other order of the numbers below n. */
class emulator_permutation
{
  public:
    explicit emulator_permutation(uint64_t n);
    bool next(uint64_t *i);

  private:
    uint64_t n, seen, mask, step, at;
};

/* Runs all threads of a grid; device memory is open. */
void emulator_run_grid(const char *name, void (*kernel)(), emulator_call *call, dim3 grid, dim3 block,
                       const void *argument);

/* While there is one, device memory can be read and written. */
struct emulator_opened {
    emulator_opened();
    ~emulator_opened();
};

/* true: this call was asked to fail. */
bool emulator_fails(emulator_failure what);
/* Does this once the stream comes to it. @param what  for messages */
void emulator_queue(cudaStream_t s, const char *what, std::function<void()> work);
/* Aborts unless all of it is in one allocation of the device. */
void emulator_check_range(const char *what, const void *p, size_t bytes);

#endif
