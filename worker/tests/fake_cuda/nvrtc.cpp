// libnvrtc for tests: compiles a program with the C++ compiler of the machine, after device.h and with the ptx.cuh of
// this folder in place of its own. What it returns as PTX or CUBIN is a line with the path of the shared object.
//
// As the real one it fuses products and sums, where the processor can, unless it is told not to.
//
// Objects are kept beside this library, by what they are made of, for the next process.
// FAKE_CUDA_COMPILED is a file to which the name of each source is written that is compiled, or would be but for that.
// FAKE_CUDA_SOURCE is this folder, said by whoever compiles this.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

enum Result { SUCCESS = 0, INVALID_INPUT = 3, INVALID_PROGRAM = 4, INVALID_OPTION = 5, COMPILATION = 6 };

namespace {

struct Program {
    std::string name, source;
    std::map<std::string, std::string> headers;
    std::string log, image;
};

std::string read(const std::string& path) {
    std::ifstream file(path);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
}

void write(const std::string& path, const std::string& text) {
    std::ofstream(path) << text;
}

std::string folder() {
    Dl_info info;
    dladdr((void*)&folder, &info);
    std::string path = info.dli_fname;
    path = path.substr(0, path.rfind('/')) + "/modules";
    mkdir(path.c_str(), 0777);
    return path;
}

/// FNV-1a.
std::string hash(const std::string& text) {
    uint64_t x = 0xcbf29ce484222325;
    for (unsigned char c : text) x = (x ^ c) * 0x100000001b3;
    char hex[17];
    snprintf(hex, sizeof hex, "%016llx", (unsigned long long)x);
    return hex;
}

/// `FAKE_KERNEL(name)` for every kernel of a source.
std::string entries(const std::string& source) {
    static const std::regex kernel(
        R"(__global__\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\()");
    std::set<std::string> names;  // one may stand in both branches of an #if
    for (std::sregex_iterator at(source.begin(), source.end(), kernel), end; at != end; ++at) names.insert((*at)[1].str());
    std::string text;
    for (auto& name : names) text += "FAKE_KERNEL(" + name + ")\n";
    return text;
}

Result compile(Program& program, const std::vector<std::string>& defines, bool fused) {
    const std::string own = FAKE_CUDA_SOURCE;
    auto headers = program.headers;
    headers["ptx.cuh"] = read(own + "/ptx.cuh");
    std::string source = "#include \"" + own + "/device.h\"\n#line 1 \"" + program.name + "\"\n" + program.source + "\n" +
                         entries(program.source);
    std::string flags = "-std=c++17 -O1 -shared -fPIC -fvisibility=hidden -Wl,-Bsymbolic -U_FORTIFY_SOURCE -Wall -Wextra"
                        " -Wno-unused -Wno-attributes -Wno-unknown-pragmas -fno-strict-aliasing"
                        " -fsanitize=alignment,bounds -fsanitize-undefined-trap-on-error";
#ifdef __x86_64__
    if (fused && __builtin_cpu_supports("fma")) flags += " -mfma";
#endif
    flags += fused ? " -ffp-contract=fast -fexpensive-optimizations" : " -ffp-contract=off";
    for (auto& define : defines) flags += " '" + define + "'";
    std::string all = source + flags + read(own + "/device.h") + read(own + "/launch.h");
    for (auto& [name, text] : headers) all += name + "\n" + text;
    const std::string base = folder() + "/" + hash(all), object = base + ".so";
    program.image = "// fake module " + object + "\n";
    if (access(object.c_str(), R_OK) == 0) return SUCCESS;

    const std::string work = base + "." + std::to_string(getpid()) + "." + hash(std::to_string((uintptr_t)&program));
    mkdir(work.c_str(), 0777);
    for (auto& [name, text] : headers) write(work + "/" + name, text);
    write(work + "/program.cpp", source);
    const char* compiler = getenv("CXX") ? getenv("CXX") : "c++";
    std::string command = std::string(compiler) + " " + flags + " -I '" + work + "' -o '" + work + "/out.so' '" + work +
                          "/program.cpp' > '" + work + "/log' 2>&1";
    bool done = system(command.c_str()) == 0 && rename((work + "/out.so").c_str(), object.c_str()) == 0;
    program.log = read(work + "/log");
    if (system(("rm -r '" + work + "'").c_str())) return COMPILATION;
    return done ? SUCCESS : COMPILATION;
}

}  // namespace

EXPORT Result nvrtcVersion(int* major, int* minor) {
    *major = 12;
    *minor = 9;
    return SUCCESS;
}

EXPORT const char* nvrtcGetErrorString(Result result) {
    return result == SUCCESS ? "NVRTC_SUCCESS" : result == COMPILATION ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR_INVALID_INPUT";
}

EXPORT Result nvrtcCreateProgram(Program** program, const char* source, const char* name, int count, const char* const* headers,
                                 const char* const* names) {
    *program = new Program{name ? name : "default_program", source, {}, "", ""};
    for (int i = 0; i < count; i++) (*program)->headers[names[i]] = headers[i];
    return SUCCESS;
}

EXPORT Result nvrtcDestroyProgram(Program** program) {
    delete *program;
    *program = nullptr;
    return SUCCESS;
}

EXPORT Result nvrtcCompileProgram(Program* program, int count, const char* const* options) {
    std::vector<std::string> defines;
    bool fused = true;
    for (int i = 0; i < count; i++) {
        std::string option = options[i];
        if (option.compare(0, 2, "-D") == 0) {
            defines.push_back(option);
        } else if (option.compare(0, 7, "--fmad=") == 0) {
            fused = option == "--fmad=true";
        } else if (!std::regex_match(option, std::regex("--gpu-architecture=(sm|compute)_[0-9]+a?|--std=c\\+\\+17|-std=c\\+\\+17|"
                                                        "-default-device|--device-as-default-execution-space|"
                                                        "-lineinfo|--generate-line-info"))) {
            program->log = "nvrtc: error: invalid option " + option;
            return INVALID_OPTION;
        }
    }
    if (const char* path = getenv("FAKE_CUDA_COMPILED")) {
        // In one write, for several threads do it at once.
        std::ofstream(path, std::ios::app) << program->name + "\n" << std::flush;
    }
    return compile(*program, defines, fused);
}

EXPORT Result nvrtcGetProgramLogSize(Program* program, size_t* size) {
    *size = program->log.size() + 1;
    return SUCCESS;
}

EXPORT Result nvrtcGetProgramLog(Program* program, char* log) {
    memcpy(log, program->log.c_str(), program->log.size() + 1);
    return SUCCESS;
}

EXPORT Result nvrtcGetPTXSize(Program* program, size_t* size) {
    *size = program->image.size() + 1;
    return program->image.empty() ? INVALID_PROGRAM : SUCCESS;
}

EXPORT Result nvrtcGetPTX(Program* program, char* image) {
    memcpy(image, program->image.c_str(), program->image.size() + 1);
    return SUCCESS;
}

EXPORT Result nvrtcGetCUBINSize(Program* program, size_t* size) {
    return nvrtcGetPTXSize(program, size);
}

EXPORT Result nvrtcGetCUBIN(Program* program, char* image) {
    return nvrtcGetPTX(program, image);
}
