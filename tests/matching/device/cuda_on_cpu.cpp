// Starts a kernel by its name: what follows the kernels in the program that runs on a CPU.

extern "C" int run_kernel(const char* name, int blocks_x, int blocks_y, int threads, int shared_bytes, void** arguments) {
    const auto run = [&](auto kernel) {
        return emulator::launch(kernel, blocks_x, blocks_y, threads, shared_bytes, arguments);
    };
#ifdef CAPACITY
    if (!strcmp(name, "match_pairs")) return run(match_pairs);
#else
    if (!strcmp(name, "multiply_panels")) return run(multiply_panels);
    if (!strcmp(name, "split_panel")) return run(split_panel);
    if (!strcmp(name, "multiply_halves")) return run(multiply_halves);
    if (!strcmp(name, "sum_values_of_float32")) return run(sum_values_of_float32);
    if (!strcmp(name, "sum_values_of_float64")) return run(sum_values_of_float64);
#endif
    return 2;
}

extern "C" void round_tensor_sums(int products_at_once, int direction, int last_first) {
    emulator::products_at_once = products_at_once;
    emulator::rounding_direction = direction;
    emulator::last_first = last_first;
}
extern "C" float add_on_tensor_core(float sum, const double* products, int n) {
    return emulator::tensor_sum(sum, products, n);
}
extern "C" float subtract_rounding_up(float a, float b) { return __fsub_ru(a, b); }
extern "C" double add_rounding_up(double a, double b) { return __dadd_ru(a, b); }
