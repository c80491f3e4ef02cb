# A quick build of llama-cpp-python for tests: 2 CPU-minutes instead of 9. CMake reads it behind llama-cpp-python's own
# `project` line (-DCMAKE_PROJECT_llama_cpp_INCLUDE=...); see tox.ini. For use, and for figures, build without it.

# llama-cpp-python would build the library of llama.cpp's programs, which it does not load.
set(LLAMA_BUILD_COMMON OFF)
set(LLAMA_ALL_WARNINGS OFF)
set(GGML_ALL_WARNINGS OFF)
set(GGML_LLAMAFILE OFF)
# Only the kernels are optimized.
set(CMAKE_C_FLAGS_RELEASE "-O1 -DNDEBUG")
set(CMAKE_CXX_FLAGS_RELEASE "-O0 -DNDEBUG")

function(quick)
    target_compile_options(ggml-cpu PRIVATE -O1)
    target_precompile_headers(llama PRIVATE
        <algorithm> <array> <cmath> <cstring> <fstream> <functional> <map> <memory> <mutex> <numeric> <queue> <random>
        <regex> <set> <sstream> <stdexcept> <string> <thread> <unordered_map> <vector>)
endfunction()
cmake_language(DEFER CALL quick)
