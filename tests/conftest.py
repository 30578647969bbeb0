"""A whole pipeline of the real classes at tiny size: nothing is downloaded, and a clip takes milliseconds."""

import os


os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import pytest
import torch


WORDS = "[PAD] [UNK] [CLS] [SEP] low medium high quality , a calm fast piano guitar melody drums".split()


@pytest.fixture(scope="session")
def build_components():
    """Builds the arguments of `QAMDTPipeline`, the same ones each time; the network can be changed."""
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler

    from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
    from qamdt.models.vocoder_istft import ISTFTVocoder
    from qamdt.quality import PUBLISHED_QUALITY_STATS

    def build(**transformer_changes) -> dict:
        torch.manual_seed(0)
        tokenizer, text_encoder = build_text_encoder()
        transformer_config = {
            "sample_size": (16, 4),
            "patch_size": (2, 4),
            "in_channels": 4,
            "num_layers": 4,
            "num_decoder_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 16,
            "use_frame_quality": True,
            "use_global_quality": True,
            "pool_text": True,
        }
        vae = AutoencoderKL(
            in_channels=1,
            out_channels=1,
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            block_out_channels=(8, 8),
            latent_channels=4,
            norm_num_groups=4,
            layers_per_block=1,
        )
        return {
            "vae": vae.eval(),
            "text_encoder": text_encoder,
            "tokenizer": tokenizer,
            "transformer": shaken(QAMDTTransformer2DModel(**transformer_config | transformer_changes)),
            "scheduler": DPMSolverMultistepScheduler(
                beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", prediction_type="v_prediction"
            ),
            "vocoder": ISTFTVocoder(num_mel_bins=8, n_fft=320, hop_length=160, dim=8, num_layers=1).eval(),
            "quality_stats": PUBLISHED_QUALITY_STATS.to_dict(),
        }

    return build


@pytest.fixture
def pipe(build_components):
    """A pipeline of tiny components with 0.32 s as native length, without progress bar."""
    from pipelines.pipeline_qamdt import QAMDTPipeline

    pipe = QAMDTPipeline(**build_components())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe_dir(pipe, tmp_path):
    """A folder that `pipe` was saved to."""
    pipe.save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.fixture(scope="session")
def encoders_dir(tmp_path_factory):
    """A folder with `vae`, an autoencoder that makes 25 latent frames a second, and `text`, which knows few words."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    from tests.tiny_autoencoders import build_autoencoder_kl

    folder = tmp_path_factory.mktemp("encoders")
    build_autoencoder_kl(mid_block_add_attention=False).save_pretrained(folder / "vae")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "song", "quality", "low", "high", "medium", ","]
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder / "text")
    config = BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    BertModel(config).save_pretrained(folder / "text")
    return folder


@pytest.fixture(scope="session")
def write_latents():
    """Writes a folder of encoded music, as `data_prep.encode_latents` does, from tensors that a test makes up."""
    from qamdt.keyed_rows import make_key
    from qamdt.latent_writing import write_index
    from qamdt.shards import find_entries, write_latent_shard, write_text_shard

    def write(folder, records, means, stds, texts, *, curves=None, clips_per_shard=512, **description):
        """`texts` maps each text to its states, and `curves` the id of a clip to its curves by name."""
        folder.mkdir(parents=True, exist_ok=True)
        keys = [make_key(record.id) for record in records]
        for start in range(0, len(records), clips_per_shard):
            some = slice(start, start + clips_per_shard)
            write_latent_shard(folder, keys[some], means[some], stds[some])
        text_keys = {text: make_key(text) for text in texts}
        write_text_shard(folder, list(text_keys.values()), list(texts.values()))
        places, text_places = find_entries(folder, "latents"), find_entries(folder, "text")
        description = {
            "scaling_factor": 1.0,
            "vae_scaling_factor": 1.0,
            "latent_frames_per_second": 12.5,
            "quality": None,
            "max_captions": None,
        } | description
        return write_index(
            folder,
            [(record, places[key]) for record, key in zip(records, keys, strict=True)],
            {text: text_places[key] for text, key in text_keys.items()},
            lambda record, num_frames: (curves or {}).get(record.id, {}),
            description,
        )

    return write


@pytest.fixture(scope="session")
def write_noise(write_latents):
    """Writes a folder of clips of noise as long as told, in latent frames, with the captions "song 0", "song 1", ..."""
    from qamdt.manifest import Record

    def write(folder, lengths, *, caption="song", clips_per_shard=512, **description):
        generator = torch.Generator().manual_seed(0)
        names = [f"{i}" for i in range(len(lengths))]
        captions = [f"{caption} {name}" for name in names]
        records = [
            Record(id=name, path=f"{name}.wav", duration_in_s=1.0, captions=(text,))
            for name, text in zip(names, captions, strict=True)
        ]
        means = [torch.randn(2, length, 4, generator=generator) for length in lengths]
        stds = [mean.abs() / 10 for mean in means]
        texts = {text: torch.randn(3, 8, generator=generator) for text in ("", *captions)}
        write_latents(folder, records, means, stds, texts, clips_per_shard=clips_per_shard, **description)

    return write


@pytest.fixture
def fresh_accelerator():
    """Lets a test choose its precision and processes, which accelerate fixes once a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def build_text_encoder():
    """A word-level tokenizer and a sentence encoder of one layer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=128,
    )
    return tokenizer, BertModel(config).eval()


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """The model with all its weights moved, so that no condition is without effect as in a fresh one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="session")
def scorer_dir(tmp_path_factory):
    """A folder with a WhisQ scorer of random weights, whose tiny encoders lie in folders of their own."""
    from whisq.modeling_clap import MiniClap
    from whisq.modeling_whisq import WhisQModel

    folder = tmp_path_factory.mktemp("scorer")
    torch.manual_seed(0)
    clap = MiniClap(num_mel_bins=16, channels=(4, 4, 8), hidden_size=16, num_layers=1, embedding_size=8)
    shaken(clap).save_pretrained(folder / "clap")
    tokenizer, text_encoder = build_text_encoder()
    tokenizer.save_pretrained(folder / "text")
    shaken(text_encoder).save_pretrained(folder / "text")
    model = WhisQModel(
        audio_encoder=str(folder / "clap"),
        text_encoder=str(folder / "text"),
        audio_hidden_size=16,
        text_hidden_size=16,
        num_attention_heads=2,
        head_hidden_sizes=(16,),
    )
    shaken(model).save_pretrained(folder / "whisq-tiny")
    return folder / "whisq-tiny"
