"""Small language models in CSLLM's layouts, and a sheet for them to judge, for the tests of synthesizability."""

from __future__ import annotations

import json

import torch
from ase import Atoms
from ase.build import mx2

from evaluation import material_strings


def mos2(vacuum: float = 10.0) -> Atoms:
    """Return a 2H MoS2 monolayer."""
    atoms = mx2("MoS2", "2H", a=3.16, thickness=3.17, vacuum=vacuum)
    atoms.pbc = (True, True, False)
    return atoms


def tiny_tokenizer(split_labels: bool = False):
    """Return a tokenizer of words and single characters; with ``split_labels`` the labels have two tokens each."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "Input", "Output", "Can", "this", "material", "structure", "be", "synthesized", "How", "can"]
    words += ["Tr", "ue", "Fal", "se"] if split_labels else ["True", "False"]
    words += [chr(code) for code in range(33, 127)]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    pieces = "|".join(sorted(filter(str.isalpha, words[3:]), key=len, reverse=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{pieces}|\S"), "removed", invert=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def tiny_llama(tokenizer, seed=0):
    """Return a Llama of one layer with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).eval()


def save_base(folder, tokenizer, seed=0):
    """Write ``tiny_llama`` and its tokenizer as transformers does, and return the model."""
    model = tiny_llama(tokenizer, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def save_adapter(folder, tokenizer, seed, base_name="/home/author/llama_hf/llama3-8bf-hf"):
    """Write a LoRA adapter with weights that matter (peft starts B at zero) and a path to its base that does not exist here."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(tiny_llama(tokenizer), LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 2.0)
    adapted.save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = base_name
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return adapted.eval()


def manual_scores(model, tokenizer, text):
    """Return log P of both labels by the chain rule, with one forward pass per token."""
    context = tokenizer(material_strings.prompt(text))["input_ids"]
    found = []
    for label in material_strings.LABELS:
        ids = tokenizer(material_strings.prompt(text, label))["input_ids"]
        assert ids[: len(context)] == context
        total = 0.0
        for position in range(len(context), len(ids)):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids[:position]])).logits[0, -1]
            total += float(torch.log_softmax(logits, -1)[ids[position]])
        found.append(total)
    return found
