// The CPU kernels for the avx2 instruction set; model/CMakeLists.txt sets the compiler's flags.
#define T2R_CPU_ISA avx2
#define T2R_CPU_ISA_NAME "avx2"

#include "model/kernels/cpu/causal_attention_cpu.inl"
#include "model/kernels/cpu/pointwise_cpu.inl"
