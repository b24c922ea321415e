/*
 * with_gpu COMMAND...: runs it, where there is a GPU (gpu.c).
 * SPDX-License-Identifier: MIT
 */
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc > 1) execv(argv[1], argv + 1);
    perror("with_gpu");
    return 1;
}
