// The CPU kernels for the baseline instruction set; model/CMakeLists.txt sets the compiler's flags.
#define T2R_CPU_ISA baseline
#define T2R_CPU_ISA_NAME "baseline"

#include "model/kernels/cpu/causal_attention_cpu.inl"
#include "model/kernels/cpu/pointwise_cpu.inl"
