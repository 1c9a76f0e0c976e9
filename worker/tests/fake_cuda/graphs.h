// What the fake driver records of a stream and does again: a part of driver.cpp, between what it needs and what needs it.
#pragma once

namespace {

/// A launch, a copy or a fill, whose arguments are the values that they had when it was recorded.
struct Node {
    Function* function = nullptr;
    fake::Extent grid, block;
    unsigned shared = 0;
    std::vector<Pointer> arguments;
    std::function<Result()> other;
};

struct Graph {
    std::vector<Node> nodes;
};

/// What is being recorded of a stream.
struct Capture {
    Graph graph;
    std::thread::id thread;
    bool is_broken = false;
};

std::set<void*> graphs, made_graphs;
std::map<void*, Capture> captures;
/// Calls that queued something: kernels, copies and fills on the card, graphs.
size_t queued;

Capture* capture_of(void* stream) {
    auto found = captures.find(stream);
    return found == captures.end() ? nullptr : &found->second;
}

/// For what cannot be recorded: it fails, and so does the recording.
Result check_not_captured(const char* call, void* stream) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    Capture* capture = capture_of(stream);
    if (!capture) return SUCCESS;
    capture->is_broken = true;
    return complain(CAPTURE_UNSUPPORTED, std::string(call) + ": cannot be captured");
}

/// For what a thread must not do while it records anything.
Result check_not_capturing(const char* call) {
    for (auto& [stream, capture] : captures)
        if (capture.thread == std::this_thread::get_id()) return check_not_captured(call, stream);
    return SUCCESS;
}

/// Does something now, or when the graph is launched that it is recorded for.
Result queue(void* stream, std::function<Result()> work) {
    if (Capture* capture = capture_of(stream)) {
        Node node;
        node.other = work;
        capture->graph.nodes.push_back(node);
        return SUCCESS;
    }
    queued++;
    return work();
}

/// What the environment has graphs do.
Result check_graphs(const char* call) {
    const char* wanted = getenv("FAKE_CUDA_GRAPHS");
    if (Result result = check()) return result;
    if (!wanted) return SUCCESS;
    return !strcmp(wanted, "none") ? NOT_SUPPORTED : !strcmp(wanted, call) ? LAUNCH_FAILED : SUCCESS;
}

/// Runs a kernel with the arguments that a node has.
Result run(const Node& node) {
    Function* function = node.function;
    std::vector<void*> places;
    for (size_t i = 0; i < node.arguments.size(); i++) {
        places.push_back((void*)&node.arguments[i]);
        Pointer at = node.arguments[i];
        if (function->kinds[i] == 'p' && at && !memory.holds(at, 0))
            return complain(INVALID_VALUE, function->name + ": argument " + std::to_string(i) + " is not memory of the card");
    }
    misbehave(function->name);
    fake::Launch launch = {function->name.c_str(), node.grid, node.block, node.shared, places.data(), 0};
    std::string message = run_in_orders(function, launch);
    if (message.empty() && memory.damaged()) message = function->name + ": wrote beyond an allocation";
    if (message.empty()) return SUCCESS;
    failed = true;
    return complain(message.find("outside of the card") == std::string::npos ? LAUNCH_FAILED : ILLEGAL_ADDRESS, message);
}

}  // namespace

/// Calls that queued something, and graphs that can be launched, for the tests.
EXPORT void fake_card_counts(size_t* calls, size_t* all_graphs) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    *calls = queued;
    *all_graphs = made_graphs.size();
}

EXPORT Result cuStreamBeginCapture_v2(void* stream, int mode) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (Result result = check_graphs("cuStreamBeginCapture")) return result;
    if ((uintptr_t)stream <= 2 || !is_known(stream) || captures.count(stream) || mode != 1)
        return complain(INVALID_VALUE, "cuStreamBeginCapture: not such a stream, or not of this thread alone");
    captures[stream].thread = std::this_thread::get_id();
    return SUCCESS;
}

EXPORT Result cuStreamEndCapture(void* stream, void** graph) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    *graph = nullptr;
    Capture* capture = capture_of(stream);
    if (!capture) return complain(CAPTURE_UNMATCHED, "cuStreamEndCapture: nothing was begun");
    Graph recorded = capture->graph;
    bool is_broken = capture->is_broken;
    captures.erase(stream);
    if (Result result = check_graphs("cuStreamEndCapture")) return result;
    if (is_broken) return CAPTURE_INVALIDATED;
    graphs.insert(*graph = new Graph(recorded));
    return SUCCESS;
}

EXPORT Result cuGraphInstantiateWithFlags(void** made, void* graph, unsigned long long) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (Result result = check_graphs("cuGraphInstantiate")) return result;
    if (!graphs.count(graph)) return complain(INVALID_HANDLE, "cuGraphInstantiate: not a graph");
    made_graphs.insert(*made = new Graph(*(Graph*)graph));
    return SUCCESS;
}

EXPORT Result cuGraphLaunch(void* made, void* stream) {
    bool has_stream = is_stream(stream);
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (Result result = check_graphs("cuGraphLaunch")) return result;
    if (!made_graphs.count(made) || !has_stream) return complain(INVALID_HANDLE, "cuGraphLaunch");
    if (Result result = check_not_captured("cuGraphLaunch", stream)) return result;
    queued++;
    for (auto& node : ((Graph*)made)->nodes)
        if (Result result = node.function ? run(node) : node.other()) return result;
    return SUCCESS;
}

EXPORT Result cuGraphDestroy(void* graph) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (!graphs.erase(graph)) return complain(INVALID_HANDLE, "cuGraphDestroy: not a graph");
    delete (Graph*)graph;
    return SUCCESS;
}

EXPORT Result cuGraphExecDestroy(void* made) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (!made_graphs.erase(made)) return complain(INVALID_HANDLE, "cuGraphExecDestroy: not one that was made");
    delete (Graph*)made;
    return SUCCESS;
}
