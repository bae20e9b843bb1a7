# shellcheck shell=bash
# Sourced (bash): the environment in which t2r is built and run. launch/setup.sh decides what is in
# it.

T2R_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export T2R_ROOT
if [[ -e $T2R_ROOT/.cache/t2r_env.sh ]]; then
  # shellcheck disable=SC1091
  source "$T2R_ROOT/.cache/t2r_env.sh"
fi

# mpirun refuses to start as root, which is who one is in a container.
if ((EUID == 0)); then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

# The tests start four ranks. With fewer cores mpirun refuses that, and ranks bound to one core
# would wait for each other. OMPI_ is read by Open MPI 4, PRTE_ by 5; what is already set is left as
# it is.
if (($(nproc) < 8)); then
  export OMPI_MCA_rmaps_base_oversubscribe=${OMPI_MCA_rmaps_base_oversubscribe:-1}
  export OMPI_MCA_hwloc_base_binding_policy=${OMPI_MCA_hwloc_base_binding_policy:-none}
  : "${PRTE_MCA_rmaps_default_mapping_policy:=:oversubscribe}"
  : "${PRTE_MCA_hwloc_default_binding_policy:=none}"
  export PRTE_MCA_rmaps_default_mapping_policy PRTE_MCA_hwloc_default_binding_policy
fi
