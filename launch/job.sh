# shellcheck shell=bash
# Sourced by eval.sbatch, mix.sbatch and step.sbatch: how a command of one node runs, and what a stage of a pipeline
# (hermes3 launch --pipeline) leaves of itself.
container=() near=''
trap 'near=1' USR1 # the time limit is near, or the site takes the nodes; without a trap it would end the script unsaid
. launch/env.sh

# As one task on the node. cpu-bind: Slurm would give one task one core.
task=(srun --nodes=1 --ntasks=1 --cpu-bind=none "${container[@]}")

# This task's number in an array, or nothing. A job that an array's task submits has that task's variables, and is none.
array_task=''
# shellcheck disable=SC2034 # eval.sbatch and mix.sbatch read it
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
  shown=$(scontrol -o show job "$SLURM_JOB_ID")
  if [[ $shown == *" ArrayTaskId="* ]]; then
    array_task=$SLURM_ARRAY_TASK_ID
  fi
fi

# finish CODE: end the job, and say what that means for the stages behind it.
finish() {
  if (($1)); then
    python -m hermes3.slurm.record failed "$1"
  else
    python -m hermes3.slurm.record "done"
  fi
  exit "$1"
}

# run_on COMMAND...: run what goes on where it was cut off. When the time limit is near (--signal=B:USR1@...), queue the
# job again: Slurm itself never does that. Not for ever, as a piece that is longer than the limit would never end: up to
# $tries times.
run_on() {
  local code=0 restarts=${SLURM_RESTART_COUNT:-0}
  # in the background: bash runs a trap when a command ends, or at once in `wait`
  "${task[@]}" "$@" &
  wait $! || code=$?
  if [[ -n $near ]]; then
    if ((restarts < ${tries:-10})); then
      echo "hermes3: the time limit is near: what is done is kept"
      python -m hermes3.slurm.queue || finish 1
      exit 1
    fi
    echo "hermes3: the time limit has come $((restarts + 1)) times: give more, hermes3 launch ... -- --time=HH:MM:SS"
    finish 1
  fi
  finish "$code"
}

python -m hermes3.slurm.record begin || finish 1
