// libcuda for tests: one card that is none. Modules are shared objects that the fake NVRTC made; kernels run at once, in
// the caller's thread. Only what the fake NCCL queues in a stream takes until later: what is queued behind it waits for it, in the caller's
// thread, and events behind it are not done before.
//
// Environment:
//   FAKE_CUDA_MEMORY       bytes of the card, 1 GiB if not set
//   FAKE_CUDA_FREE         bytes of it that cuMemGetInfo says are free at most, all if not set
//   FAKE_CUDA_DEVICES      cards, 1 if not set
//   FAKE_CUDA_CARDS        their unique names instead, with commas; then CUDA_VISIBLE_DEVICES says which of them there are
//   FAKE_CUDA_LOG          a file, to which the unique name of the card is written by who begins to use it
//   FAKE_CUDA_LINK         a file, to which the bytes that were copied to and from the card are written when the process ends
//   FAKE_CUDA_CRASH        a kernel whose name has this in it ends the process; copies on the card are named "copy"
//   FAKE_CUDA_HANG         one whose name has this in it never ends
//   FAKE_CUDA_CAPABILITY   compute capability times ten, 90 if not set
//   FAKE_CUDA_DRIVER       what cuDriverGetVersion says, 12090 if not set
//   FAKE_CUDA_GRAPHS       "none": a driver without them; the name of a call: that one fails
//   FAKE_CUDA_ORDERS       runs every kernel in so many orders of its threads and fails if results differ, 1 if not set
//
// What a call does wrong is said on stderr, and as on a real card a kernel that fails makes all later calls fail.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <functional>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "launch.h"
#include "memory.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

typedef int Result;
typedef unsigned long long Pointer;

enum : Result {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
    INVALID_IMAGE = 200, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700,
    LAUNCH_FAILED = 719, NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, CAPTURE_UNMATCHED = 903,
};

namespace {

struct Function {
    std::string name, kinds;
    const char* (*run)(const fake::Launch*);
    int max_dynamic_shared = 48 << 10;
};

struct Module {
    void* library;
    std::map<std::string, Function*> functions;
};

/// What others have queued in a stream, and how much of it is done.
struct Stream {
    size_t queued = 0, done = 0;
};

struct Event {
    std::chrono::steady_clock::time_point time;
    bool recorded;
    /// Of this stream as much has to be done.
    void* stream;
    size_t queued;
};

size_t environment(const char* name, size_t otherwise) {
    const char* text = getenv(name);
    return text ? strtoull(text, nullptr, 10) : otherwise;
}

std::vector<std::string> split(const char* text) {
    std::vector<std::string> parts(1);
    for (; text && *text; text++)
        if (*text == ',') parts.emplace_back();
        else parts.back() += *text;
    if (parts.back().empty()) parts.pop_back();
    return parts;
}

/// The cards that this process may see: as with the real library, the first name or number that means none ends the list.
std::vector<std::string> visible() {
    auto all = split(getenv("FAKE_CUDA_CARDS"));
    if (all.empty()) return std::vector<std::string>(environment("FAKE_CUDA_DEVICES", 1), "GPU-5a");
    if (!getenv("CUDA_VISIBLE_DEVICES")) return all;
    std::vector<std::string> seen;
    for (auto& part : split(getenv("CUDA_VISIBLE_DEVICES"))) {
        char* end;
        size_t number = strtoull(part.c_str(), &end, 10);
        auto named = std::find(all.begin(), all.end(), part);
        if (!*end && number < all.size()) seen.push_back(all[number]);
        else if (named != all.end()) seen.push_back(*named);
        else break;
    }
    return seen;
}

int capability() {
    static const int value = (int)environment("FAKE_CUDA_CAPABILITY", 90);
    return value;
}

/// Bytes of shared memory that a block can be given. Source: CUDA C++ Programming Guide, table of technical specifications.
int most_shared() {
    static const std::map<int, int> known = {{75, 64}, {80, 163}, {86, 99}, {87, 163}, {89, 99}};
    auto found = known.find(capability());
    return (found == known.end() ? 227 : found->second) << 10;
}

std::recursive_mutex lock;
bool initialized, failed;
fake::Memory memory(environment("FAKE_CUDA_MEMORY", (size_t)1 << 30));
std::set<void*> events, functions;
std::map<void*, Stream> streams;
std::mutex queue_lock;
std::condition_variable queue_moved;
char the_context;
thread_local void* current;

Result complain(Result result, const std::string& what) {
    fprintf(stderr, "fake card: %s\n", what.c_str());
    return result;
}

/// What every call on a context needs first.
Result check() {
    if (!initialized) return complain(NOT_INITIALIZED, "cuInit was not called");
    if (!current) return complain(INVALID_CONTEXT, "no context is current in this thread");
    return failed ? LAUNCH_FAILED : SUCCESS;
}

Result check_memory(const char* call, Pointer at, size_t bytes) {
    if (memory.holds(at, bytes)) return SUCCESS;
    char text[200];
    snprintf(text, sizeof text, "%s: %zu bytes at 0x%llx are not in one allocation", call, bytes, at);
    return complain(INVALID_VALUE, text);
}

/// Whether so much of a stream is done; of one that is gone all is.
bool is_done(void* stream, size_t queued) {
    auto found = streams.find(stream);
    return found == streams.end() || queued <= found->second.done;
}

/// Whether it is a stream; then everything that others have queued in it is done.
bool is_stream(void* stream) {
    std::unique_lock<std::mutex> guard(queue_lock);
    auto found = streams.find(stream);
    if (found == streams.end()) return (uintptr_t)stream <= 2;
    size_t queued = found->second.queued;
    queue_moved.wait(guard, [&] { return is_done(stream, queued); });
    return true;
}

/// Takes no notice of what is queued.
bool is_known(void* stream) {
    std::lock_guard<std::mutex> guard(queue_lock);
    return (uintptr_t)stream <= 2 || streams.count(stream);
}

/// Does to a kernel of this name what the environment says.
void misbehave(const std::string& name) {
    auto is_named = [&](const char* variable) {
        const char* part = getenv(variable);
        return part && name.find(part) != std::string::npos;
    };
    if (is_named("FAKE_CUDA_CRASH")) abort();
    while (is_named("FAKE_CUDA_HANG")) std::this_thread::sleep_for(std::chrono::milliseconds(10));
}

/// What has crossed the link between the host and the card.
struct Link {
    size_t up = 0, down = 0;
    ~Link() {
        FILE* log = getenv("FAKE_CUDA_LINK") ? fopen(getenv("FAKE_CUDA_LINK"), "a") : nullptr;
        if (!log) return;
        fprintf(log, "%zu %zu\n", up, down);
        fclose(log);
    }
} host_link;

Result copy(const char* call, void* to, const void* from, size_t bytes, bool to_card, bool from_card) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (Result result = check()) return result;
    if (to_card)
        if (Result result = check_memory(call, (Pointer)to, bytes)) return result;
    if (from_card)
        if (Result result = check_memory(call, (Pointer)from, bytes)) return result;
    memmove(to, from, bytes);
    if (!from_card) host_link.up += bytes;
    if (!to_card) host_link.down += bytes;
    return SUCCESS;
}

Result fill(const char* call, Pointer at, size_t size, unsigned value, size_t count) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (Result result = check()) return result;
    if (Result result = check_memory(call, at, size * count)) return result;
    for (size_t i = 0; i < count; i++) memcpy((char*)at + i * size, &value, size);
    return SUCCESS;
}

/// Runs it in every order that is asked for.
std::string run_in_orders(Function* function, fake::Launch launch) {
    static const size_t orders = environment("FAKE_CUDA_ORDERS", 1);
    if (orders <= 1) return function->run(&launch);
    auto before = memory.contents();
    std::string message = function->run(&launch);
    auto expected = memory.contents();
    for (unsigned seed = 1; seed < orders && message.empty(); seed++) {
        memory.restore(before);
        launch.seed = seed;
        message = function->run(&launch);
        if (message.empty() && memory.contents() != expected)
            message = function->name + ": the result depends on the order of the threads";
    }
    return message;
}

}  // namespace

#include "graphs.h"

/// For the fake cuBLASLt.
EXPORT bool fake_card_holds(const void* at, size_t bytes) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    return memory.holds((uintptr_t)at, bytes);
}

/// For the fake NCCL: its work in a stream begins, if it is one of the thread's card.
EXPORT bool fake_card_begins(void* stream) {
    std::lock_guard<std::mutex> guard(queue_lock);
    auto found = streams.find(stream);
    if (!current || found == streams.end()) return false;
    found->second.queued++;
    return true;
}

/// It has ended.
EXPORT void fake_card_ends(void* stream) {
    std::lock_guard<std::mutex> guard(queue_lock);
    auto found = streams.find(stream);
    if (found != streams.end()) found->second.done++;
    queue_moved.notify_all();
}

EXPORT Result cuInit(unsigned) {
    if (visible().empty()) return NO_DEVICE;
    initialized = true;
    return SUCCESS;
}

EXPORT Result cuDriverGetVersion(int* version) {
    *version = (int)environment("FAKE_CUDA_DRIVER", 12090);
    return SUCCESS;
}

EXPORT Result cuDeviceGetCount(int* count) {
    *count = (int)visible().size();
    return initialized ? SUCCESS : NOT_INITIALIZED;
}

EXPORT Result cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return 0 <= ordinal && ordinal < (int)visible().size() ? SUCCESS : INVALID_DEVICE;
}

EXPORT Result cuDeviceGetName(char* name, int size, int) {
    snprintf(name, (size_t)size, "Fake card");
    return SUCCESS;
}

EXPORT Result cuDeviceGetUuid_v2(char* uuid, int) {
    memset(uuid, 0x5a, 16);
    return SUCCESS;
}

EXPORT Result cuDeviceGetUuid(char* uuid, int device) {
    return cuDeviceGetUuid_v2(uuid, device);
}

EXPORT Result cuDeviceGetPCIBusId(char* text, int size, int device) {
    // Its place is that among all cards of the machine, whoever sees which.
    auto cards = visible(), all = split(getenv("FAKE_CUDA_CARDS"));
    if (device < 0 || (int)cards.size() <= device) return INVALID_DEVICE;
    auto found = std::find(all.begin(), all.end(), cards[(size_t)device]);
    snprintf(text, (size_t)size, "0000:%02x:00.0", 1 + (found == all.end() ? device : (int)(found - all.begin())));
    return SUCCESS;
}

EXPORT Result cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = memory.total();
    return SUCCESS;
}

EXPORT Result cuDeviceGetAttribute(int* value, int attribute, int) {
    static const std::map<int, int> known = {
        {1, 1024}, {2, 1024}, {3, 1024}, {4, 64}, {5, 0x7fffffff}, {6, 65535}, {7, 65535},  // block, grid
        {8, 48 << 10}, {81, most_shared() + 1024}, {97, most_shared()}, {10, 32}, {12, 65536}, {82, 65536},  // shared, warp, registers
        {13, 1000000}, {16, 4}, {36, 1000000}, {37, 64}, {38, 1 << 20}, {39, 2048}, {41, 1},  // clocks, processors, L2
        {75, capability() / 10}, {76, capability() % 10}, {115, 1},  // compute capability, memory pools
    };
    auto found = known.find(attribute);
    *value = found == known.end() ? 0 : found->second;
    return SUCCESS;
}

EXPORT Result cuDevicePrimaryCtxRetain(void** context, int device) {
    *context = &the_context;
    auto cards = visible();
    FILE* log = getenv("FAKE_CUDA_LOG") ? fopen(getenv("FAKE_CUDA_LOG"), "a") : nullptr;
    if (log && 0 <= device && device < (int)cards.size()) fprintf(log, "%s\n", cards[(size_t)device].c_str());
    if (log) fclose(log);
    return cuDeviceGet(&device, device);
}

EXPORT Result cuDevicePrimaryCtxRelease_v2(int) {
    return SUCCESS;
}

EXPORT Result cuCtxSetCurrent(void* context) {
    if (context && context != &the_context) return complain(INVALID_CONTEXT, "cuCtxSetCurrent: not a context");
    current = context;
    return SUCCESS;
}

EXPORT Result cuCtxGetCurrent(void** context) {
    *context = current;
    return SUCCESS;
}

EXPORT Result cuCtxGetDevice(int* device) {
    *device = 0;
    return check();
}

EXPORT Result cuCtxSynchronize() {
    return check();
}

EXPORT Result cuCtxSetFlags(unsigned) {
    return check();
}

EXPORT Result cuMemGetInfo_v2(size_t* free, size_t* total) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    *total = memory.total();
    *free = std::min(memory.total() - memory.used(), environment("FAKE_CUDA_FREE", memory.total()));
    return check();
}

EXPORT Result cuMemAlloc_v2(Pointer* at, size_t bytes) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (Result result = check()) return result;
    if (Result result = check_not_capturing("cuMemAlloc")) return result;
    if (bytes == 0) return complain(INVALID_VALUE, "cuMemAlloc: no bytes");
    *at = memory.allocate(bytes);
    return *at ? SUCCESS : OUT_OF_MEMORY;
}

EXPORT Result cuMemFree_v2(Pointer at) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (Result result = check()) return result;
    if (!at) return SUCCESS;
    return memory.free(at) ? SUCCESS : complain(INVALID_VALUE, "cuMemFree: nothing that is in use begins there");
}

EXPORT Result cuMemAllocAsync(Pointer* at, size_t bytes, void* stream) {
    return is_stream(stream) ? cuMemAlloc_v2(at, bytes) : complain(INVALID_HANDLE, "cuMemAllocAsync: not a stream");
}

EXPORT Result cuMemFreeAsync(Pointer at, void* stream) {
    return is_stream(stream) ? cuMemFree_v2(at) : complain(INVALID_HANDLE, "cuMemFreeAsync: not a stream");
}

EXPORT Result cuMemHostAlloc(void** at, size_t bytes, unsigned) {
    *at = malloc(bytes);
    return *at ? SUCCESS : OUT_OF_MEMORY;
}

EXPORT Result cuMemAllocHost_v2(void** at, size_t bytes) {
    return cuMemHostAlloc(at, bytes, 0);
}

EXPORT Result cuMemFreeHost(void* at) {
    free(at);
    return SUCCESS;
}

EXPORT Result cuMemcpyHtoD_v2(Pointer to, const void* from, size_t bytes) {
    return copy("cuMemcpyHtoD", (void*)to, from, bytes, true, false);
}

EXPORT Result cuMemcpyDtoH_v2(void* to, Pointer from, size_t bytes) {
    return copy("cuMemcpyDtoH", to, (void*)from, bytes, false, true);
}

EXPORT Result cuMemcpyDtoD_v2(Pointer to, Pointer from, size_t bytes) {
    return copy("cuMemcpyDtoD", (void*)to, (void*)from, bytes, true, true);
}

EXPORT Result cuMemcpyHtoDAsync_v2(Pointer to, const void* from, size_t bytes, void* stream) {
    if (Result result = check_not_captured("cuMemcpyHtoDAsync", stream)) return result;
    return is_stream(stream) ? cuMemcpyHtoD_v2(to, from, bytes) : complain(INVALID_HANDLE, "cuMemcpyHtoDAsync: not a stream");
}

EXPORT Result cuMemcpyDtoHAsync_v2(void* to, Pointer from, size_t bytes, void* stream) {
    if (Result result = check_not_captured("cuMemcpyDtoHAsync", stream)) return result;
    return is_stream(stream) ? cuMemcpyDtoH_v2(to, from, bytes) : complain(INVALID_HANDLE, "cuMemcpyDtoHAsync: not a stream");
}

EXPORT Result cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t bytes, void* stream) {
    if (!is_stream(stream)) return complain(INVALID_HANDLE, "cuMemcpyDtoDAsync: not a stream");
    std::lock_guard<std::recursive_mutex> guard(lock);
    return queue(stream, [=] {
        misbehave("copy");
        return cuMemcpyDtoD_v2(to, from, bytes);
    });
}

EXPORT Result cuMemsetD8_v2(Pointer at, unsigned char value, size_t count) {
    return fill("cuMemsetD8", at, 1, value, count);
}

EXPORT Result cuMemsetD8Async(Pointer at, unsigned char value, size_t count, void* stream) {
    if (!is_stream(stream)) return complain(INVALID_HANDLE, "cuMemsetD8Async: not a stream");
    std::lock_guard<std::recursive_mutex> guard(lock);
    return queue(stream, [=] { return fill("cuMemsetD8Async", at, 1, value, count); });
}

EXPORT Result cuMemsetD32_v2(Pointer at, unsigned value, size_t count) {
    return fill("cuMemsetD32", at, 4, value, count);
}

EXPORT Result cuMemsetD32Async(Pointer at, unsigned value, size_t count, void*) {
    return fill("cuMemsetD32Async", at, 4, value, count);
}

EXPORT Result cuStreamCreate(void** stream, unsigned) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (Result result = check()) return result;
    std::lock_guard<std::mutex> queue_guard(queue_lock);
    streams[*stream = new char[8]];
    return SUCCESS;
}

EXPORT Result cuStreamCreateWithPriority(void** stream, unsigned flags, int) {
    return cuStreamCreate(stream, flags);
}

EXPORT Result cuStreamDestroy_v2(void* stream) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    std::lock_guard<std::mutex> queue_guard(queue_lock);
    if (!streams.erase(stream)) return complain(INVALID_HANDLE, "cuStreamDestroy: not a stream");
    queue_moved.notify_all();
    return SUCCESS;
}

EXPORT Result cuStreamSynchronize(void* stream) {
    if (Result result = check_not_captured("cuStreamSynchronize", stream)) return result;
    return is_stream(stream) ? check() : complain(INVALID_HANDLE, "cuStreamSynchronize: not a stream");
}

EXPORT Result cuStreamQuery(void* stream) {
    return cuStreamSynchronize(stream);
}

EXPORT Result cuStreamIsCapturing(void* stream, int* status) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    *status = capture_of(stream) ? 1 : 0;
    return SUCCESS;
}

EXPORT Result cuEventSynchronize(void* event);

EXPORT Result cuStreamWaitEvent(void* stream, void* event, unsigned) {
    if (Result result = check_not_captured("cuStreamWaitEvent", stream)) return result;
    if (!is_stream(stream)) return complain(INVALID_HANDLE, "cuStreamWaitEvent: not a stream");
    return cuEventSynchronize(event);
}

EXPORT Result cuEventCreate(void** event, unsigned) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (Result result = check()) return result;
    events.insert(*event = new Event{});
    return SUCCESS;
}

EXPORT Result cuEventDestroy_v2(void* event) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (!events.erase(event)) return complain(INVALID_HANDLE, "cuEventDestroy: not an event");
    delete (Event*)event;
    return SUCCESS;
}

EXPORT Result cuEventRecord(void* event, void* stream) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (!events.count(event) || !is_known(stream)) return complain(INVALID_HANDLE, "cuEventRecord");
    if (Result result = check_not_captured("cuEventRecord", stream)) return result;
    std::lock_guard<std::mutex> queue_guard(queue_lock);
    auto found = streams.find(stream);
    size_t queued = found == streams.end() ? 0 : found->second.queued;
    *(Event*)event = {std::chrono::steady_clock::now(), true, stream, queued};
    return check();
}

EXPORT Result cuEventQuery(void* event) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (!events.count(event)) return complain(INVALID_HANDLE, "cuEventQuery: not an event");
    auto* of = (Event*)event;
    std::lock_guard<std::mutex> queue_guard(queue_lock);
    return of->recorded && !is_done(of->stream, of->queued) ? NOT_READY : check();
}

EXPORT Result cuEventSynchronize(void* event) {
    std::unique_lock<std::recursive_mutex> guard(lock);
    if (!events.count(event)) return complain(INVALID_HANDLE, "cuEventSynchronize: not an event");
    Event of = *(Event*)event;
    guard.unlock();
    std::unique_lock<std::mutex> queue_guard(queue_lock);
    if (of.recorded) queue_moved.wait(queue_guard, [&] { return is_done(of.stream, of.queued); });
    return check();
}

EXPORT Result cuEventElapsedTime(float* milliseconds, void* start, void* end) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (!events.count(start) || !events.count(end)) return complain(INVALID_HANDLE, "cuEventElapsedTime: not an event");
    auto *a = (Event*)start, *b = (Event*)end;
    if (!a->recorded || !b->recorded) return complain(INVALID_HANDLE, "cuEventElapsedTime: not recorded");
    *milliseconds = std::chrono::duration<float, std::milli>(b->time - a->time).count();
    return SUCCESS;
}

EXPORT Result cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
    return cuEventElapsedTime(milliseconds, start, end);
}

EXPORT Result cuModuleLoadData(void** module, const void* image) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (Result result = check()) return result;
    const std::string text((const char*)image, strnlen((const char*)image, 4096)), mark = "// fake module ";
    if (text.compare(0, mark.size(), mark)) return complain(INVALID_IMAGE, "cuModuleLoadData: not from the fake NVRTC");
    std::string path = text.substr(mark.size(), text.find('\n') - mark.size());
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) return complain(INVALID_IMAGE, std::string("cuModuleLoadData: ") + dlerror());
    *module = new Module{library, {}};
    return SUCCESS;
}

EXPORT Result cuModuleLoadDataEx(void** module, const void* image, unsigned, void*, void**) {
    return cuModuleLoadData(module, image);
}

EXPORT Result cuModuleUnload(void* module) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    for (auto& [name, function] : ((Module*)module)->functions) {
        functions.erase(function);
        delete function;
    }
    delete (Module*)module;
    return SUCCESS;
}

EXPORT Result cuModuleGetFunction(void** function, void* module, const char* name) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (Result result = check()) return result;
    auto* in = (Module*)module;
    auto& known = in->functions[name];
    if (!known) {
        void* run = dlsym(in->library, (std::string("fake_run_") + name).c_str());
        void* kinds = dlsym(in->library, (std::string("fake_kinds_") + name).c_str());
        if (!run || !kinds) {
            in->functions.erase(name);
            return complain(NOT_FOUND, std::string("cuModuleGetFunction: no ") + name);
        }
        known = new Function{name, ((const char* (*)())kinds)(), (const char* (*)(const fake::Launch*))run};
        functions.insert(known);
    }
    *function = known;
    return SUCCESS;
}

EXPORT Result cuFuncGetAttribute(int* value, int, void*) {
    *value = 0;
    return SUCCESS;
}

EXPORT Result cuFuncSetAttribute(void* function, int attribute, int value) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (!functions.count(function)) return complain(INVALID_HANDLE, "cuFuncSetAttribute: not a function");
    if (attribute != 8) return SUCCESS;
    if (value < 0 || most_shared() < value) return complain(INVALID_VALUE, "cuFuncSetAttribute: too much shared memory");
    ((Function*)function)->max_dynamic_shared = std::max(value, 48 << 10);
    return SUCCESS;
}

EXPORT Result cuFuncSetCacheConfig(void*, int) {
    return SUCCESS;
}

EXPORT Result cuLaunchKernel(void* handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                             unsigned shared, void* stream, void** arguments, void** extra) {
    bool has_stream = is_stream(stream);
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (Result result = check()) return result;
    if (!functions.count(handle)) return complain(INVALID_HANDLE, "cuLaunchKernel: not a function");
    auto* function = (Function*)handle;
    auto refuse = [&](const std::string& why) { return complain(INVALID_VALUE, function->name + ": " + why); };
    if (!has_stream) return complain(INVALID_HANDLE, function->name + ": not a stream");
    if (!gx || !gy || !gz || 65535 < gy || 65535 < gz) return refuse("no such grid");
    if (!bx || !by || !bz || 1024 < (size_t)bx * by * bz) return refuse("no such block");
    if ((unsigned)function->max_dynamic_shared < shared) return refuse("too much shared memory");
    if (extra || (!arguments && !function->kinds.empty())) return refuse("no arguments");
    Node node;
    node.function = function, node.grid = {gx, gy, gz}, node.block = {bx, by, bz}, node.shared = shared;
    for (size_t i = 0; i < function->kinds.size(); i++) {
        node.arguments.push_back(0);
        memcpy(&node.arguments.back(), arguments[i], function->kinds[i] == '4' ? 4 : 8);
    }
    if (Capture* capture = capture_of(stream)) {
        capture->graph.nodes.push_back(node);
        return SUCCESS;
    }
    queued++;
    return run(node);
}

EXPORT Result cuGetErrorName(Result result, const char** name) {
    static const std::map<int, const char*> names = {
        {SUCCESS, "CUDA_SUCCESS"}, {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"}, {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
        {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED"}, {NO_DEVICE, "CUDA_ERROR_NO_DEVICE"},
        {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"}, {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE"},
        {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"}, {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"},
        {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"}, {NOT_READY, "CUDA_ERROR_NOT_READY"}, {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
        {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED"}, {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED"},
        {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
        {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"},
        {CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED"},
    };
    auto found = names.find(result);
    *name = found == names.end() ? nullptr : found->second;
    return *name ? SUCCESS : INVALID_VALUE;
}

EXPORT Result cuGetErrorString(Result result, const char** text) {
    return cuGetErrorName(result, text);
}
