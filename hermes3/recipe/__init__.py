"""Reading recipes, and holding them to Axolotl, to the paper and to themselves.

`check` (the verb: `cli`, its output: `show`) collects a `finding` for each thing that is wrong:
- `validate`, `schema`, `deepspeed_file`: what Axolotl and DeepSpeed themselves say, and the names that they let pass;
- `rules`, `base_model`, `prepared`, `neighbours`: what they accept and this project refuses;
- `paper`, `marks`, `conform`: the paper's values beside the recipe's, and whose each value is;
- `reads` (on `throwaway` models, by `watch`), `evidence`, `ignored`: who reads each key, and which key nothing reads.

`hardware` is what a recipe declares to run on.
"""
