// libnccl for tests: communicators of two ranks of one machine, which never block their callers. What is sent goes through a Unix
// socket; an operation begins when its stream comes to it, and ends when the last byte is there. As with the real library whoever waits for somebody
// that is gone waits until the communicator is aborted.
//
// Environment:
//   FAKE_NCCL_VERSION      what ncclGetVersion says, 22703 if not set
//   FAKE_NCCL_LOG          a file, to which a line is written for each operation that has begun ("send BYTES", "receive BYTES") and for those that ended ("sent",
//                          "received"), of more than one number
//   FAKE_NCCL_PAUSE        milliseconds that such an operation takes longer
//   FAKE_NCCL_HANG         communicators are never made ("start"), or operations never end, after so many of such a process
//   FAKE_NCCL_FAIL         likewise, but the communicator fails
//
// What a call does wrong is said on stderr.
#include <atomic>
#include <chrono>
#include <climits>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <functional>
#include <mutex>
#include <poll.h>
#include <string>
#include <sys/socket.h>
#include <sys/un.h>
#include <thread>
#include <unistd.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

enum Result { SUCCESS = 0, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6, IN_PROGRESS = 7 };
enum { FLOAT = 7 };

struct Id {
    char name[128];
};

/// As of 2.14; later ones are longer.
struct Config {
    size_t size;
    unsigned magic, version;
    int blocking, more;
};

namespace {

Result complain(Result result, const char* what) {
    fprintf(stderr, "fake NCCL: %s\n", what);
    return result;
}

/// A function of the fake driver.
template <typename F> F* of_card(const char* name) {
    void* driver = dlopen("libcuda.so", RTLD_NOW | RTLD_NOLOAD);
    if (!driver) driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    void* found = driver ? dlsym(driver, name) : nullptr;
    if (!found) abort();
    return (F*)found;
}

auto* card_holds = of_card<bool(const void*, size_t)>("fake_card_holds");
auto* card_begins = of_card<bool(void*)>("fake_card_begins");
auto* card_ends = of_card<void(void*)>("fake_card_ends");

void log(const std::string& line) {
    FILE* file = getenv("FAKE_NCCL_LOG") ? fopen(getenv("FAKE_NCCL_LOG"), "a") : nullptr;
    if (!file) return;
    fprintf(file, "%s\n", line.c_str());
    fclose(file);
}

/// Whether the environment says so of the next long operation.
bool is_its_turn(const char* variable, long operation) {
    const char* text = getenv(variable);
    return text && strcmp(text, "start") && strtol(text, nullptr, 10) <= operation;
}

bool at_start(const char* variable) {
    return getenv(variable) && !strcmp(getenv(variable), "start");
}

std::atomic<long> operations;

struct Operation {
    bool is_send;
    char* at;
    size_t bytes;
    void* stream;
};

}  // namespace

struct Communicator {
    int rank, socket = -1, listener = -1;
    std::string name;
    std::mutex lock;
    std::condition_variable moved;
    std::deque<Operation> waiting;
    Result state = IN_PROGRESS;
    bool aborted = false, is_gone = false;
    std::thread thread;

    void become(Result result) {
        std::lock_guard<std::mutex> guard(lock);
        if (state == SUCCESS || state == IN_PROGRESS) state = result;
    }

    bool is_aborted() {
        std::lock_guard<std::mutex> guard(lock);
        return aborted;
    }

    /// Until it is aborted.
    void hang() {
        std::unique_lock<std::mutex> guard(lock);
        moved.wait(guard, [&] { return aborted; });
    }

    bool is_ready(int of, short events) {
        pollfd end = {of, events, 0};
        return 0 < poll(&end, 1, 5);
    }

    void meet() {
        if (at_start("FAKE_NCCL_FAIL")) return become(SYSTEM_ERROR);
        if (at_start("FAKE_NCCL_HANG")) return hang();
        sockaddr_un address = {AF_UNIX, {}};
        memcpy(address.sun_path + 1, name.data(), name.size());
        socklen_t length = (socklen_t)(offsetof(sockaddr_un, sun_path) + 1 + name.size());
        int own = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (rank == 0) {
            listener = own;
            if (bind(own, (sockaddr*)&address, length) || listen(own, 1)) return become(SYSTEM_ERROR);
            while (!is_aborted() && !is_ready(own, POLLIN)) {}
            if (!is_aborted()) socket = accept4(own, nullptr, nullptr, SOCK_CLOEXEC);
        } else {
            while (!is_aborted() && connect(own, (sockaddr*)&address, length))
                std::this_thread::sleep_for(std::chrono::milliseconds(2));
            socket = own;
        }
        if (!is_aborted()) become(SUCCESS);
    }

    /// Moves all bytes, piece by piece, until it is aborted; who is at a closed end waits, as at a link that says nothing.
    void move(Operation& operation) {
        for (size_t done = 0; done < operation.bytes && !is_aborted();) {
            if (!is_ready(socket, operation.is_send ? POLLOUT : POLLIN)) continue;
            size_t left = operation.bytes - done;
            ssize_t moved_now = operation.is_send ? ::send(socket, operation.at + done, left, MSG_NOSIGNAL | MSG_DONTWAIT)
                                                  : recv(socket, operation.at + done, left, MSG_DONTWAIT);
            if (moved_now <= 0 && !(moved_now < 0 && errno == EAGAIN)) return hang();
            if (0 < moved_now) done += (size_t)moved_now;
        }
    }

    void carry(Operation& operation) {
        bool is_long = sizeof(float) < operation.bytes;
        long number = is_long ? operations++ : -1;
        const char* pause = getenv("FAKE_NCCL_PAUSE");
        if (is_long) log((operation.is_send ? "send " : "receive ") + std::to_string(operation.bytes));
        if (is_long && pause) {
            std::unique_lock<std::mutex> guard(lock);
            moved.wait_for(guard, std::chrono::milliseconds(strtol(pause, nullptr, 10)), [&] { return aborted; });
        }
        if (is_long && is_its_turn("FAKE_NCCL_HANG", number)) return hang();
        if (is_long && is_its_turn("FAKE_NCCL_FAIL", number)) {
            become(REMOTE_ERROR);
            return hang();
        }
        if (!card_holds(operation.at, operation.bytes)) complain(INVALID_ARGUMENT, "what it moves is not memory of the card any more");
        else move(operation);
        if (is_long && !is_aborted()) log(operation.is_send ? "sent" : "received");
    }

    void run() {
        meet();
        for (;;) {
            std::unique_lock<std::mutex> guard(lock);
            moved.wait(guard, [&] { return aborted || !waiting.empty(); });
            if (aborted) break;
            Operation operation = waiting.front();
            waiting.pop_front();
            guard.unlock();
            carry(operation);
            card_ends(operation.stream);
        }
    }

    Result queue(Operation operation, int peer) {
        std::lock_guard<std::mutex> guard(lock);
        if (aborted || is_gone) return complain(INVALID_USAGE, "a communicator that was aborted is used");
        if (peer != 1 - rank) return complain(INVALID_ARGUMENT, "there is no such rank");
        if (state != SUCCESS) return complain(INVALID_USAGE, "an operation begins before the one before it has");
        if (!card_holds(operation.at, operation.bytes)) return complain(INVALID_ARGUMENT, "what it moves is not memory of the card");
        if (!card_begins(operation.stream)) return complain(INVALID_ARGUMENT, "not a stream of this thread's card");
        waiting.push_back(operation);
        // It begins as soon as somebody asks.
        state = IN_PROGRESS;
        moved.notify_all();
        return IN_PROGRESS;
    }

};

EXPORT Result ncclGetVersion(int* version) {
    const char* text = getenv("FAKE_NCCL_VERSION");
    *version = text ? (int)strtol(text, nullptr, 10) : 22703;
    return SUCCESS;
}

EXPORT const char* ncclGetErrorString(Result result) {
    switch (result) {
    case SUCCESS: return "no error";
    case SYSTEM_ERROR: return "unhandled system error (run with NCCL_DEBUG=INFO for details)";
    case INVALID_ARGUMENT: return "invalid argument (run with NCCL_DEBUG=WARN for details)";
    case INVALID_USAGE: return "invalid usage (run with NCCL_DEBUG=WARN for details)";
    case REMOTE_ERROR: return "remote process exited or there was a network error";
    case IN_PROGRESS: return "NCCL operation in progress";
    }
    return "unknown result code";
}

EXPORT Result ncclGetUniqueId(Id* id) {
    static std::atomic<int> next;
    memset(id, 0, sizeof *id);
    snprintf(id->name, sizeof id->name, "fake-nccl/%d/%d", getpid(), next++);
    return SUCCESS;
}

EXPORT Result ncclCommInitRankConfig(Communicator** communicator, int ranks, Id id, int rank, const Config* config) {
    *communicator = nullptr;
    if (ranks != 2 || rank < 0 || 1 < rank) return complain(INVALID_ARGUMENT, "this one is for two ranks");
    if (config->magic != 0xcafebeef || config->size < sizeof(Config) || config->version < 21400)
        return complain(INVALID_ARGUMENT, "not a configuration");
    if (config->blocking != 0 || config->more != INT_MIN) return complain(INVALID_ARGUMENT, "another configuration than expected");
    if (strncmp(id.name, "fake-nccl/", 10)) return complain(INVALID_ARGUMENT, "not an identity");
    *communicator = new Communicator;
    (*communicator)->rank = rank;
    (*communicator)->name = id.name;
    (*communicator)->thread = std::thread([it = *communicator] { it->run(); });
    return IN_PROGRESS;
}

EXPORT Result ncclCommGetAsyncError(Communicator* communicator, Result* state) {
    std::lock_guard<std::mutex> guard(communicator->lock);
    if (communicator->is_gone) return complain(INVALID_USAGE, "a communicator that was aborted is asked");
    *state = communicator->state;
    bool is_made = 0 <= communicator->socket;
    if (is_made && communicator->state == IN_PROGRESS) communicator->state = SUCCESS;
    return SUCCESS;
}

EXPORT Result ncclSend(const void* at, size_t count, int type, int peer, Communicator* communicator, void* stream) {
    if (type != FLOAT) return complain(INVALID_ARGUMENT, "this one is for floats");
    return communicator->queue({true, (char*)at, count * sizeof(float), stream}, peer);
}

EXPORT Result ncclRecv(void* at, size_t count, int type, int peer, Communicator* communicator, void* stream) {
    if (type != FLOAT) return complain(INVALID_ARGUMENT, "this one is for floats");
    return communicator->queue({false, (char*)at, count * sizeof(float), stream}, peer);
}

/// Its memory is kept, so that later calls are noticed.
EXPORT Result ncclCommAbort(Communicator* communicator) {
    {
        std::lock_guard<std::mutex> guard(communicator->lock);
        if (communicator->is_gone) return complain(INVALID_USAGE, "a communicator is aborted twice");
        communicator->aborted = communicator->is_gone = true;
        communicator->moved.notify_all();
    }
    communicator->thread.join();
    for (auto& operation : communicator->waiting) card_ends(operation.stream);
    for (int end : {communicator->socket, communicator->listener})
        if (0 <= end) close(end);
    return SUCCESS;
}
