// The CPU kernels for the avx512 instruction set; model/CMakeLists.txt sets the compiler's flags.
#define T2R_CPU_ISA avx512
#define T2R_CPU_ISA_NAME "avx512"

#include "model/kernels/causal_attention_cpu.inl"
#include "model/kernels/pointwise_cpu.inl"
