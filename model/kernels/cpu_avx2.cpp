// The CPU kernels for the avx2 instruction set; model/CMakeLists.txt sets the compiler's flags.
#define T2R_CPU_ISA avx2
#define T2R_CPU_ISA_NAME "avx2"

#include "model/kernels/causal_attention_cpu.inl"
#include "model/kernels/pointwise_cpu.inl"
