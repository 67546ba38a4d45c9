"""What an app is: a name on the command line, its own verbs, its recipes and its demo.

An app is found through the entry-point group `collimate.apps`; nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path


@dataclass(frozen=True)
class Verb:
    """A command: `target` is `module:function`; its signature and docstring make the options."""

    target: str
    summary: str


CORE_VERBS: Mapping[str, Verb] = {
    "train": Verb("collimate.training.run:train", "train a recipe; without arguments, the embedded demo"),
    "plan": Verb("collimate.planning.command:plan", "predict what a recipe's training takes on a machine"),
    "zero-shot": Verb("collimate.evaluation.commands:zero_shot", "classify by class names, without training"),
    "retrieval": Verb("collimate.evaluation.commands:retrieval", "rank one modality by another, both ways"),
    "probe": Verb("collimate.evaluation.commands:probe", "linear and nearest-neighbour probes of a frozen encoder"),
    "classify": Verb("collimate.evaluation.commands:classify", "tell classes by a classifier trained on them"),
    "embed": Verb("collimate.evaluation.commands:embed", "write the embeddings of a data set"),
    "export": Verb("collimate.checkpoints.commands:export", "write a checkpoint in another format"),
}
"""The verbs of every app, written once."""

DATA_VERBS: Mapping[str, Verb] = {
    "shard": Verb("collimate.data.commands:shard", "write shards from a folder, a table or any other source"),
    "index": Verb("collimate.data.commands:index", "index shards: counts, sizes, checksums"),
    "inspect": Verb("collimate.data.commands:inspect", "show counts, keys, caption lengths and a few samples"),
    "verify": Verb("collimate.data.commands:verify", "decode everything and list what is damaged, with reasons"),
    "caption": Verb("collimate.data.captioning:caption", "add synthetic captions to data, by an image-to-text model"),
    "regions": Verb("collimate.data.labelling:regions", "add boxes of what captions name, by a detector"),
    "import-regions": Verb("collimate.data.importing:import_regions", "a table of regions from COCO, RefCOCO, ..."),
    "neighbours": Verb(
        "collimate.evaluation.neighbours:write_neighbours", "a table of each sample's nearest others, to train with"
    ),
    "select": Verb("collimate.evaluation.selection:select", "keep the samples that two models say to train on"),
    "balance": Verb("collimate.data.commands:balance", "show what each rank and worker will read"),
}

SEARCH_VERBS: Mapping[str, Verb] = {
    "check": Verb("collimate.search.commands:check", "tell whether trained models share a space"),
    "index": Verb("collimate.search.commands:index", "embed data of several modalities and write an index"),
    "find": Verb("collimate.search.commands:find", "search an index by a text, or by a file of any modality"),
    "retrieval": Verb("collimate.search.commands:retrieval", "rank two modalities that never met in training"),
    "serve": Verb("collimate.search.commands:serve", "search an index on a page of this machine's browser"),
}

GROUPS: Mapping[str, tuple[str, Mapping[str, Verb]]] = {
    "data": ("make, index, inspect and check data sets", DATA_VERBS),
    "search": ("find anything by anything, in one space of several models", SEARCH_VERBS),
}
"""Commands beside the apps: name -> what it is for, and its verbs."""


@dataclass(frozen=True)
class App:
    """One modality's command.

    Attributes:
        name: as typed, e.g. `vision-language`.
        summary: one line for `collimate --help`.
        package: the import name of the app, whose `configs` folder holds the recipes.
        demo: the recipe that `train` runs when it is given none.
        verbs: the app's own verbs beside the core's.
    """

    name: str
    summary: str
    package: str
    demo: str
    verbs: Mapping[str, Verb] = field(default_factory=dict)

    @property
    def all_verbs(self) -> dict[str, Verb]:
        return {**CORE_VERBS, **self.verbs}

    def recipes(self) -> dict[str, Path]:
        """Recipe name -> file."""
        folder = Path(str(files(self.package))) / "configs"
        return {path.stem: path for path in sorted(folder.glob("*.yaml"))}

    def recipe(self, name: str) -> Path:
        """The file of a recipe, given its name or a path.

        Raises:
            FileNotFoundError: there is neither; names the nearest recipes.
        """
        if Path(name).is_file():
            return Path(name)
        recipes = self.recipes()
        if name in recipes:
            return recipes[name]
        near = get_close_matches(name, recipes, n=3) or list(recipes)
        raise FileNotFoundError(f"{name!r} is neither a file nor a recipe of {self.name}; recipes: {', '.join(near)}.")


def installed_apps() -> dict[str, App]:
    """The apps whose packages are installed, by name."""
    found = (entry.load() for entry in entry_points(group="collimate.apps"))
    return {app.name: app for app in sorted(found, key=lambda app: app.name)}
