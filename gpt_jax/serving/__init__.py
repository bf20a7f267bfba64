"""A model over HTTP: the protocol of OpenAI's API, and a page to chat on. It needs the extra [serve]."""
