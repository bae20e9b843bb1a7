// The CPU kernels for the avx512 instruction set; model/CMakeLists.txt sets the compiler's flags.
#define T2R_CPU_ISA avx512
#define T2R_CPU_ISA_NAME "avx512"

#include "model/kernels/cpu/causal_attention_cpu.inl"
#include "model/kernels/cpu/pointwise_cpu.inl"
