// Starts a kernel by its name: what follows the kernels in the program that runs on a CPU.

extern "C" int run_kernel(const char* name, int blocks_x, int blocks_y, int threads, void** arguments) {
    const auto run = [&](auto kernel) { return emulator::launch(kernel, blocks_x, blocks_y, threads, arguments); };
    if (!strcmp(name, "multiply_panels")) return run(multiply_panels);
    if (!strcmp(name, "match_pairs")) return run(match_pairs);
    if (!strcmp(name, "sum_values_of_float32")) return run(sum_values_of_float32);
    if (!strcmp(name, "sum_values_of_float64")) return run(sum_values_of_float64);
    return 2;
}

extern "C" float subtract_rounding_up(float a, float b) { return __fsub_ru(a, b); }
extern "C" double add_rounding_up(double a, double b) { return __dadd_ru(a, b); }
