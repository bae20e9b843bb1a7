// The CPU kernels for the baseline instruction set; model/CMakeLists.txt sets the compiler's flags.
#define T2R_CPU_ISA baseline
#define T2R_CPU_ISA_NAME "baseline"

#include "model/kernels/causal_attention_cpu.inl"
#include "model/kernels/pointwise_cpu.inl"
