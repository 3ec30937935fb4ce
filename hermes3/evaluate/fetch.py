"""The questions of a suite, fetched on a machine with a network: the nodes that evaluate often have none."""

from hermes3.evaluate.suite import Suite, require


def fetch(suite: Suite) -> None:
    """Load each task of `suite` as lm-eval will, so that its questions are in the cache, and say which.

    What is in the cache already is not fetched again. `ValueError` names the tasks that failed, and the remedy.
    """
    require(suite.name, suite.needs)
    from lm_eval.tasks import TaskManager, get_task_dict

    manager = TaskManager(include_path=str(suite.include_path))
    tasks = [task for of_shots in suite.by_shots().values() for task in of_shots]
    failed = []
    for number, task in enumerate(tasks, 1):
        said = "here"
        try:
            get_task_dict([task], manager)
            if "ifeval" in task:  # it asks nltk for the data when it is imported, which fails without a word
                import nltk

                nltk.data.find("tokenizers/punkt_tab")
        except Exception as error:  # the Hub's, the data's or the network's: each library has its own
            failed.append(task)
            lines = str(error).strip().splitlines() or [""]
            said = f"failed: {type(error).__name__}: {lines[0]}"
        print(f"{number} of {len(tasks)}: {task}: {said}", flush=True)
    if failed:
        raise ValueError(
            f"{suite.name}: {len(failed)} of {len(tasks)} tasks failed, each for the reason above: {', '.join(failed)}"
            "; run this again where there is a network, without HF_HUB_OFFLINE; for a gated data set (GPQA's is one) "
            "accept its terms on the Hub and set HF_TOKEN"
        )
