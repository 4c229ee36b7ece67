"""Models on the Hugging Face hub: the model folder as it is, fetched and sent file by file.

huggingface_hub's `ModelHubMixin` offers the same three methods. It is not used: it deletes an old
`config.json` before a new one is written, reads that file before it has been checked, and keeps the
arguments of the constructor, a backbone among them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from knownot.errors import ModelFileError

if TYPE_CHECKING:
    from torch import nn

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CALIBRATION = "calibration.safetensors"
CARD = "README.md"
# Whole names: a pattern such as *.safetensors also matches a path that leads elsewhere.
FILES = (CONFIG, WEIGHTS, CALIBRATION, CARD)


def is_hub_id(name: str) -> bool:
    """Whether the text has the form `owner/name`."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


def download(repo_id: str, revision: str | None = None, **options: Any) -> Path:
    """Fetch the files of a model folder, no others, into the hub's cache.

    Args:
        repo_id: `owner/name`.
        revision: Branch, tag or commit.
        options: `token`, `cache_dir`, `force_download`, `local_files_only` as in
            `huggingface_hub.snapshot_download`.

    Raises:
        ModelFileError: If they cannot be had; says why.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(repo_id, revision=revision, allow_patterns=list(FILES), **options)
        )
    except Exception as error:
        raise ModelFileError(
            f"{repo_id}: no such folder here, and not found on the hub ({type(error).__name__}); check "
            "the name and the network, and for a private model log in with `hf auth login`"
        ) from None


class HubMethods:
    """`save_pretrained`, `from_pretrained` and `push_to_hub`, as models of other libraries have them."""

    def save_pretrained(self, save_directory: str | Path, *, overwrite: bool = True) -> None:
        """Write the model folder, all of it or nothing, see `knownot.models.model_folder.save`.

        Args:
            save_directory: Where to.
            overwrite: Replace a model folder that exists; what else it holds, `training/` for
                example, goes with it.

        Raises:
            DataError: If something else is there, or it cannot be written.
            ModelFileError: If the model is not calibrated.
        """
        from knownot.models.model_folder import save

        save(self, save_directory, overwrite=overwrite)  # type: ignore[arg-type]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        backbone: nn.Module | None = None,
        device: str = "cpu",
    ) -> Self:
        """Load a model folder, or a repository `owner/name` of the hub; nothing is unpickled.

        Args:
            pretrained_model_name_or_path: Folder or hub id.
            revision: Branch, tag or commit on the hub; a folder has none.
            token: Access token, True for the one that is logged in.
            cache_dir: Where downloads are kept.
            force_download: Fetch again what is in the cache.
            local_files_only: Ask the cache alone.
            backbone: The backbone, for a model that was built around a module of your own.
            device: Where the model is put, or "auto" for the best device there is.

        Raises:
            ModelFileError: If it is missing, damaged, not to be trusted, or a model of another kind.
        """
        from knownot.models.model_folder import load

        folder = Path(pretrained_model_name_or_path)
        if not folder.exists() and is_hub_id(str(pretrained_model_name_or_path)):
            folder = download(
                str(pretrained_model_name_or_path),
                revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
            )
        model = load(folder, backbone=backbone, device=device)
        if not isinstance(model, cls):
            raise ModelFileError(
                f"{pretrained_model_name_or_path}: holds an {type(model).__name__}, not an "
                f"{cls.__name__}; knownot.load takes both"
            )
        return model

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload model with knownot",
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Send the model folder and its card to the hub, in one commit.

        Weights, configuration, calibration and card are sent; the settings and logs of training,
        which name folders of your machine, are not.

        Args:
            repo_id: `owner/name`; made if it does not exist.
            commit_message: Message of the commit.
            private: Whether a new repository is private; the owner's default if not given.
            token: Access token, True for the one that is logged in.
            branch: Branch to commit to, "main" if not given.
            create_pr: Open a pull request instead of committing to the branch.

        Returns:
            Address of the commit.

        Raises:
            ModelFileError: If the model is not calibrated.
            huggingface_hub.errors.HfHubHTTPError: If the hub refuses.
        """
        from huggingface_hub import HfApi

        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            self.save_pretrained(folder)  # before the hub is asked for anything
            api = HfApi(token=token)
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                allow_patterns=list(FILES),
                commit_message=commit_message,
                revision=branch,
                create_pr=create_pr,
            )
        return str(commit)
