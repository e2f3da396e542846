"""`distill push`: a model folder to the Hugging Face Hub, or to whatever HF_ENDPOINT names."""

from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from distill.errors import InputError, first_line
from distill.modeling.weight_files import has_weights


def push_model(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Uploads all files of a model folder in one commit, making the repository if there is none. Returns its address.

    Raises:
        InputError: no model folder, no name of a repository, offline, no token, or what the Hub refused.
    """
    if not (folder / "config.json").is_file() or not has_weights(folder):
        raise InputError(
            f"{folder}: no model folder (config.json and weights); name one, e.g. saves/my-run/models/NAME"
        )
    _check_repo_id(repo_id)
    if constants.is_offline_mode():
        raise InputError("push: HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it")
    if not get_token():
        raise InputError("push: no token for the Hub; `hf auth login` keeps one, or set HF_TOKEN (with write access)")
    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=f"Upload {folder.name}", ignore_patterns=[".*"]
        )
    except Exception as error:  # the hub's client lets through the errors of whichever HTTP library it uses
        raise InputError(
            f"push: {api.endpoint} did not take {repo_id} ({first_line(error)}); check the name, the token's rights "
            f"and the network, or set HF_ENDPOINT"
        ) from None
    return str(commit.repo_url)


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"push: '{repo_id}' is no name of a repository, OWNER/NAME ({first_line(error)})") from None
    if repo_id.count("/") != 1:
        raise InputError(f"push: '{repo_id}' is no name of a repository; write OWNER/NAME")
