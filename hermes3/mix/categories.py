"""The eight categories of the SFT mix: key, name and percent of tokens in Table 1 of the Hermes 3 report.

The printed percentages sum to 100.5 (arXiv 2408.11857).
"""

CATEGORIES = {
    "general_instructions": ("General Instructions", 60.6),
    "domain_expert": ("Domain Expert", 12.8),
    "math": ("Math", 6.7),
    "roleplaying": ("Roleplaying", 6.1),
    "coding": ("Coding", 4.5),
    "tool_use_agentic_rag": ("Tool Use, Agentic, and RAG", 4.3),
    "content_generation": ("Content Generation", 3.0),
    "steering_alignment": ("Steering and Alignment", 2.5),
}
NAMES = {key: name for key, (name, _) in CATEGORIES.items()}
