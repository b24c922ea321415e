// The public header in C++: it compiles without a warning, and its functions are C's.
// SPDX-License-Identifier: MIT
#include "runtime/squint.h"

#include <cstring>

int main()
{
    squint_msg msg;
    squint_model *model = nullptr;
    squint_model_options options = {};
    const squint_err err = squint_model_open(&model, "/nowhere/model.gguf", &options, &msg);
    return err == SQUINT_ERR_IO && !model && std::strlen(squint_version()) >= 5 ? 0 : 1;
}
