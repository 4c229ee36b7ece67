"""Settings of VOS for detectors, chosen by in-distribution photos alone.

    python benchmarks/detection_choice.py --sets natural5 --seeds 10 11

trains as `benchmarks/detection.py` does with several settings, and lets the rule of
`knownot.training.altered_rule` choose, with mAP in place of accuracy and the boxes above the box
threshold in place of photos. No OOD photo is measured. Prints Markdown tables and writes
`<output>/detection_choice.json` after every seed; what is there is not repeated.
"""

from __future__ import annotations

import itertools
import json

from cats_dogs import machine, spread, with_earlier_runs
from detection import BEFORE, EPOCHS, METHODS, kept_or_scratch, options_of, run_keys, train
from knownot.cli.allocator import keep_freed_memory
from knownot.training.altered_rule import ACCURACY, ALTERED, choose
from knownot.training.result import TrainResult

CHOOSING = ("val_map", "altered_fpr95")


def main() -> None:
    options = options_of(__doc__, list(METHODS))
    keep_freed_memory()
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "detection_choice.json"
    fresh = {"machine": machine(), "runs": {}}
    for name, seed in itertools.product(options.sets, options.seeds):
        keys = run_keys(name, options.methods, seed)
        if set(keys.values()) <= set(with_earlier_runs(file, fresh)["runs"]):
            continue
        epochs = options.epochs or EPOCHS[name]
        common = {"image_size": options.image_size, "epochs": epochs, "seed": seed}
        with kept_or_scratch(options.models, f"{name}-{seed}") as folder:
            models = train(options.data / "detection" / name, folder, common, options.methods)
            results = with_earlier_runs(file, fresh)
            for method, model in models.items():
                told = TrainResult.read(model).metrics
                kept = {key: told[key] for key in (*CHOOSING, "n_altered_boxes", "n_val")}
                run = {"set": name, "method": method, "seed": seed, **kept}
                results["runs"][keys[method]] = run
        file.write_text(json.dumps(results, indent=1) + "\n")
    runs = with_earlier_runs(file, fresh)["runs"]
    for name in options.sets:
        print(
            f"\n### {name}\n\n| | validation mAP | FPR95 of energy, altered photos |\n|---|---|---|"
        )
        measured = {}
        for method in options.methods:
            keys = [run_keys(name, [method], seed)[method] for seed in options.seeds]
            of_method = [runs[key] for key in keys]
            columns = [[run[key] for run in of_method] for key in CHOOSING]
            print("|", method, *("| " + spread(100 * v for v in c) for c in columns), "|")
            if method != BEFORE:
                measured[method] = dict(zip((ACCURACY, ALTERED), columns, strict=True))
        if len(measured) > 1:
            photos = of_method[0]["n_val"]
            print("\nchosen:", choose(measured, "VOS", photos, photos))
    print(f"\nall numbers: {file}")


if __name__ == "__main__":
    main()
