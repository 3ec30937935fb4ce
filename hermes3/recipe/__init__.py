"""Reading recipes, and holding them to Axolotl, to the paper and to this project's rules (`check`)."""
