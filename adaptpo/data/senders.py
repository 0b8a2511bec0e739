"""The names that ShareGPT data give to speakers, and the roles that chat templates know."""

ROLE_OF_SENDER = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
    "observation": "tool",
    "function_call": "tool_call",
    "function_response": "tool",
    "tool": "tool",
}
