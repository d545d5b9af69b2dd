// A driver without a GPU, for tests: what `matching/device/cuda.py` calls, by memory of this machine and by kernels that
// are compiled for it (cuda_on_cpu.h). Built as libcuda.so.1, which cuda.bindings loads as it loads NVIDIA's.
//
// `driver_on_cpu_fail` makes calls of a function fail, so that the errors of a real card can be tried.
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

typedef int Status;
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500, LAUNCH_FAILED = 719 };

namespace {  // no other library may take these names for its own

struct Module {
    int (*run)(const char*, int, int, int, int, void**);
};

struct Function {
    Module* module;
    std::string name;
    int shared_bytes = 48 * 1024;
};

std::recursive_mutex busy;  // the emulator runs one kernel at a time
std::map<uint64_t, size_t> allocated;
size_t memory_bytes = size_t(1) << 30, used_bytes = 0;
int n_devices = 1;
thread_local int current = -1;  // the device of this thread, if it has chosen one
struct Failure {
    int after;  // so many calls
    Status status;
    int device;
};
std::map<std::string, Failure> failures;
const size_t FENCE = 256;

Status failure_of(const char* function) {
    auto found = failures.find(function);
    if (found == failures.end() || found->second.device != current || found->second.after-- > 0) return SUCCESS;
    const Status status = found->second.status;
    if (status == OUT_OF_MEMORY) failures.erase(found);  // memory may be free again; a card that failed stays so
    return status;
}

#define ENTER(function)                                  \
    std::lock_guard<std::recursive_mutex> guard(busy);   \
    if (Status failed = failure_of(function)) return failed

}  // namespace

extern "C" {

void driver_on_cpu_fail(const char* function, int after, int status, int device) { failures[function] = {after, status, device}; }
void driver_on_cpu_set_up(int devices, size_t bytes) {
    n_devices = devices;
    memory_bytes = bytes;
}
size_t driver_on_cpu_used() { return used_bytes; }

Status cuInit(unsigned) {
    ENTER("cuInit");
    return SUCCESS;
}
Status cuDriverGetVersion(int* version) {
    *version = 13000;
    return SUCCESS;
}
Status cuDeviceGetCount(int* count) {
    *count = n_devices;
    return SUCCESS;
}
Status cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return ordinal < n_devices ? SUCCESS : 101;
}
Status cuDeviceGetName(char* name, int length, int) {
    strncpy(name, "CPU in place of a GPU", length);
    return SUCCESS;
}
Status cuDeviceGetAttribute(int* value, int attribute, int) {
    *value = attribute == 16 ? 2 : attribute == 75 ? 9 : 0;  // multiprocessors; capability 9.0
    return SUCCESS;
}
Status cuDevicePrimaryCtxRetain(void** context, int device) {
    ENTER("cuDevicePrimaryCtxRetain");
    *context = reinterpret_cast<void*>(uintptr_t(device + 1));  // which tells the device
    return SUCCESS;
}
Status cuCtxSetCurrent(void* context) {
    current = int(reinterpret_cast<uintptr_t>(context)) - 1;
    return SUCCESS;
}
Status cuCtxGetCurrent(void** context) {
    *context = current < 0 ? nullptr : reinterpret_cast<void*>(uintptr_t(current + 1));
    return SUCCESS;
}
Status cuStreamCreate(void** stream, unsigned) {
    *stream = malloc(1);
    return SUCCESS;
}
Status cuStreamSynchronize(void*) {
    ENTER("cuStreamSynchronize");
    return SUCCESS;
}
Status cuEventCreate(void** event, unsigned) {
    *event = malloc(1);
    return SUCCESS;
}
Status cuEventRecord(void*, void*) {
    ENTER("cuEventRecord");
    return SUCCESS;
}
Status cuEventSynchronize(void*) {
    ENTER("cuEventSynchronize");
    for (auto [address, size] : allocated)
        for (size_t i = 0; i < FENCE; i++)
            if (reinterpret_cast<unsigned char*>(address + size)[i] != 0xA5) return LAUNCH_FAILED;
    return SUCCESS;
}
Status cuMemGetInfo(size_t* free_bytes, size_t* total) {
    *free_bytes = memory_bytes - used_bytes;
    *total = memory_bytes;
    return SUCCESS;
}
Status cuMemAlloc(uint64_t* address, size_t size) {
    ENTER("cuMemAlloc");
    if (used_bytes + size > memory_bytes) return OUT_OF_MEMORY;
    void* memory = aligned_alloc(256, (size + FENCE + 255) / 256 * 256);
    memset(memory, 0xA5, size + FENCE);
    *address = reinterpret_cast<uint64_t>(memory);
    allocated[*address] = size;
    used_bytes += size;
    return SUCCESS;
}
Status cuMemFree(uint64_t address) {
    ENTER("cuMemFree");
    if (!allocated.count(address)) return INVALID_VALUE;
    used_bytes -= allocated[address];
    allocated.erase(address);
    free(reinterpret_cast<void*>(address));
    return SUCCESS;
}
Status cuMemcpyHtoDAsync(uint64_t to, const void* from, size_t size, void*) {
    ENTER("cuMemcpyHtoDAsync");
    memcpy(reinterpret_cast<void*>(to), from, size);
    return SUCCESS;
}
Status cuMemcpyDtoHAsync(void* to, uint64_t from, size_t size, void*) {
    ENTER("cuMemcpyDtoHAsync");
    memcpy(to, reinterpret_cast<void*>(from), size);
    return SUCCESS;
}
Status cuModuleLoadData(void** module, const void* path) {  // instead of machine code, a library's path
    void* library = dlopen(static_cast<const char*>(path), RTLD_NOW | RTLD_LOCAL);
    if (!library) return 200;
    *module = new Module{reinterpret_cast<int (*)(const char*, int, int, int, int, void**)>(dlsym(library, "run_kernel"))};
    return SUCCESS;
}
Status cuModuleGetFunction(void** function, void* module, const char* name) {
    *function = new Function{static_cast<Module*>(module), name};
    return SUCCESS;
}
Status cuFuncSetAttribute(void* function, int attribute, int value) {
    if (attribute != 8) return INVALID_VALUE;
    static_cast<Function*>(function)->shared_bytes = value;
    return SUCCESS;
}
Status cuOccupancyMaxActiveBlocksPerMultiprocessor(int* count, void*, int, size_t) {
    *count = 2;
    return SUCCESS;
}
Status cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned,
                      unsigned shared_bytes, void*, void** parameters, void**) {
    ENTER("cuLaunchKernel");
    auto& kernel = *static_cast<Function*>(function);
    if (!x || !y || y > 65535 || z != 1 || threads > 1024 || int(shared_bytes) > kernel.shared_bytes)
        return INVALID_VALUE;
    return kernel.module->run(kernel.name.c_str(), x, y, threads, shared_bytes, parameters) ? LAUNCH_FAILED : SUCCESS;
}

Status cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int* found) {
    void* self = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    *function = self ? dlsym(self, name) : nullptr;
    if (found) *found = *function ? 0 : 1;
    return *function ? SUCCESS : NOT_FOUND;
}
Status cuGetProcAddress(const char* name, void** function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, function, version, flags, nullptr);
}
}
