"""Uploads of saved unlearned models: private unless asked otherwise, and nothing but the files of the layout."""

import os
import shutil
import tempfile
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelInfo

from .configuration_uld import ULDModelConfig
from .hub import copy_unlearned_model
from .model_card import model_card
from .saved_files import CONFIG_FILE, find_stale_files, read_json_object


# What tokenizers of transformers write; anything else in a folder may be somebody's data.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)


def open_repository(
    api: HfApi, repo_id: str, private: bool, revision: str | None = None, may_hold_adapter: bool = False
) -> ModelInfo:
    """
    Make a repository, or check that an existing one may be pushed to.

    Args:
        api ([`~huggingface_hub.HfApi`]):
            The Hub.
        repo_id (`str`):
            Repository; without an owner, one's own.
        private (`bool`):
            Whether it must be private.
        revision (`str`, *optional*):
            Branch to push to; made if absent.
        may_hold_adapter (`bool`, *optional*, defaults to `False`):
            Whether an adapter may be at its root: where that is the unlearned model, or is deleted by the push.

    Returns:
        [`~huggingface_hub.ModelInfo`]: Its whole name and who sees it, among others: one that exists stays private.

    Raises:
        ValueError: If it exists and is public though it must be private, or holds an adapter that it may not.
    """
    # This leaves the visibility of a repository that exists as it is.
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    info = api.repo_info(repo_id)
    if private and not info.private:
        raise ValueError(
            f"{repo_id} exists and is public: pushing would publish the model, and with an assistant a concentrated "
            "copy of the forget set. Push to another repository, or say private=False (in a configuration: "
            "hub_private_repo=False)."
        )
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
        info = api.repo_info(repo_id, revision=revision)
    if not may_hold_adapter and any(file.rfilename == "adapter_config.json" for file in info.siblings or ()):
        raise ValueError(
            f"{repo_id} has an adapter_config.json at its root: transformers would load that adapter onto the whole "
            "target, which recites the forget set. Push to another repository, or delete that file."
        )
    return info


class PrivatePushes:
    """Of trainers: what they push to is private unless told otherwise, and has no adapter that it may not have."""

    _push_privately: bool
    _target_name: str | None = None  # whose repository is not pushed to
    _may_hold_adapter = False  # whether an adapter may be at the repository's root
    _pushes_unlearned = False  # whether what is pushed is an unlearned model, which overwrites no other

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """
        Make the repository `args.hub_model_id`, private unless told otherwise.

        Args:
            token (`str`, *optional*):
                Hub token. Defaults to `args.hub_token`.
            private (`bool`, *optional*):
                Whether it must be private. Defaults to `args.hub_private_repo`; `None` there means private too.

        Raises:
            ValueError: If it exists and is public though it must be private, holds an adapter that it may not, or is
                the target's.
        """
        if not self.is_world_process_zero():
            return
        self._push_privately = (self.args.hub_private_repo if private is None else private) is not False
        repo_id = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        api = HfApi(token=token or self.args.hub_token)
        opened = open_repository(api, repo_id, self._push_privately, may_hold_adapter=self._may_hold_adapter)
        if opened.id == self._target_name:
            raise ValueError(
                f"{opened.id} is the target's own repository, whose weights would be lost. Give another hub_model_id "
                "(it defaults to the name of output_dir)."
            )
        if self._pushes_unlearned:
            read_pushed_config(api, opened.id, self.args.hub_revision)  # before the training, and not at its first save
        self.hub_model_id = opened.id
        self.push_in_progress = None

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """
        Save and upload the model, and nothing else that is in the output folder.

        Args:
            commit_message (`str`, *optional*):
                Message of the commit.
            blocking (`bool`, *optional*, defaults to `True`):
                Whether to wait for the upload.
            token (`str`, *optional*):
                Hub token. Defaults to `args.hub_token`.
            revision (`str`, *optional*):
                Branch to push to. Defaults to `args.hub_revision`.
            private (`bool`, *optional*):
                Whether the repository must be private. Defaults to `args.hub_private_repo`, which is `True`.
            **kwargs:
                Of no effect: what transformers passes to its model card.

        Returns:
            [`~huggingface_hub.CommitInfo`]: The commit, or a future of it; `None` in processes other than the first.

        Raises:
            ValueError: If the repository may not be pushed to.
        """
        if self.hub_model_id is None or private is not None:
            self.init_hf_repo(token, private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        return self._upload(self.args.output_dir, commit_message, token, revision, run_as_future=not blocking)


def read_pushed_config(api: HfApi, repo_id: str, revision: str | None = None) -> dict[str, Any]:
    """
    The config.json of a repository.

    Args:
        api ([`~huggingface_hub.HfApi`]):
            The Hub.
        repo_id (`str`):
            Repository.
        revision (`str`, *optional*):
            Branch.

    Returns:
        `dict[str, Any]`: What is in it: nothing where there is none, or a damaged one.

    Raises:
        ValueError: If it is another model's, which a push would overwrite.
    """
    if not api.file_exists(repo_id, CONFIG_FILE, revision=revision):
        return {}
    with tempfile.TemporaryDirectory() as cache:
        file = api.hf_hub_download(repo_id, CONFIG_FILE, revision=revision, cache_dir=cache)
        pushed = read_json_object(Path(file)) or {}
    if pushed.get("model_type", ULDModelConfig.model_type) != ULDModelConfig.model_type:
        raise ValueError(
            f"{repo_id} holds a model of type {pushed['model_type']!r}, whose configuration and card would be "
            "overwritten. Push to another repository."
        )
    return pushed


def push_unlearned_model(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = True,
    commit_message: str = "Upload unlearned model",
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    run_as_future: bool = False,
) -> CommitInfo | Future[CommitInfo]:
    """
    Upload a saved unlearned model: its layout and tokenizer, and nothing else that is in the folder.

    A target that is a local folder is not named in what is uploaded. The files of assistants that the repository has
    and this model does not are deleted there; its history keeps them.

    Args:
        folder (`str` or `os.PathLike`):
            Folder of the saved model.
        repo_id (`str`):
            Repository, e.g. `"me/forget-alice"`.
        private (`bool`, *optional*, defaults to `True`):
            Whether the repository must be private. The assistant is a concentrated copy of the forget set: making it
            public publishes the data.
        commit_message (`str`, *optional*):
            Message of the commit.
        token (`bool` or `str`, *optional*):
            Hub token.
        revision (`str`, *optional*):
            Branch to push to.
        create_pr (`bool`, *optional*, defaults to `False`):
            Open a pull request instead of pushing.
        run_as_future (`bool`, *optional*, defaults to `False`):
            Upload in the background; the folder may change meanwhile.

    Returns:
        [`~huggingface_hub.CommitInfo`]: The commit, or a future of it.

    Raises:
        ValueError: If the folder holds no whole unlearned model, or the repository may not be pushed to.
    """
    api = HfApi(token=token)
    staging = tempfile.mkdtemp(prefix="uld-push-")
    try:
        config = copy_unlearned_model(Path(folder), Path(staging))  # a damaged one makes no repository
        for name in TOKENIZER_FILES:
            if Path(folder, name).is_file():
                shutil.copy(Path(folder, name), Path(staging, name))
        opened = open_repository(api, repo_id, private, revision)
        pushed = read_pushed_config(api, opened.id, revision)
        model_card(config, repo_id=opened.id, private=opened.private).save(Path(staging, "README.md"))
        what = {
            "repo_id": opened.id,
            "folder_path": staging,
            "commit_message": commit_message,
            "revision": revision,
            "create_pr": create_pr,
            "delete_patterns": find_stale_files(pushed, config.files) or None,
        }
        if run_as_future:
            upload = api.run_as_future(api.upload_folder, **what)
        else:
            commit = api.upload_folder(**what)  # in this thread, which Ctrl-C stops
    except BaseException:
        shutil.rmtree(staging)
        raise
    if run_as_future:
        upload.add_done_callback(lambda _: shutil.rmtree(staging))
        return upload
    shutil.rmtree(staging)
    return commit
