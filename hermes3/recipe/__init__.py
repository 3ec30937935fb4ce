"""Reading recipes, and holding them to Axolotl's schema and to the paper."""
