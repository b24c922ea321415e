/*
 * squint: the command. Each subcommand is a file of its own.
 * SPDX-License-Identifier: MIT
 */
#include "tools/squint/cli.h"

#include <string.h>

static const cli_command *const commands[] = {&caption_command,  &look_command,   &info_command,  &quantize_command,
                                              &tokenize_command, &eval_command,   &arank_command, &bench_command,
                                              &compare_command,  &parity_command, &merge_command, &perplexity_command,
                                              &synth_command};

enum { N_COMMANDS = sizeof commands / sizeof *commands };

static int help(void)
{
    printf("usage: squint COMMAND [options] ...\n\n"
           "Captions images offline with vision-language models that skip vision tokens.\n\ncommands:\n");
    for (size_t i = 0; i < N_COMMANDS; i++)
        printf("  %-10s %s\n", commands[i]->name, commands[i]->summary);
    printf("\nsquint COMMAND --help tells a command's options. squint --version tells the version.\n");
    return cli_flush() ? CLI_DONE : CLI_FAILED;
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";
    cli_set_program(argc ? argv[0] : "");
    if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help")) return help();
    if (!strcmp(name, "--version")) return printf("squint %s\n", squint_version()), !cli_flush();
    for (size_t i = 0; i < N_COMMANDS; i++)
        if (!strcmp(name, commands[i]->name)) return commands[i]->run(commands[i], argc - 1, argv + 1);
    if (*name)
        cli_say("unknown command \"%s\" (squint --help lists them)", name);
    else
        cli_say("which command? (squint --help lists them; squint caption IMAGE is the usual one)");
    return CLI_MISUSED;
}
