//! Colour on a terminal, and nothing but text elsewhere.

use std::io::IsTerminal;

/// Paints text, or leaves it alone.
pub struct Paint {
    on: bool,
}

impl Paint {
    /// For stdout as it is: colour only for a person who has not asked for none (https://no-color.org).
    pub fn for_stdout() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { on: wanted && std::io::stdout().is_terminal() }
    }

    fn with(&self, code: &str, text: &str) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub fn bold(&self, text: &str) -> String {
        self.with("1", text)
    }

    pub fn dim(&self, text: &str) -> String {
        self.with("2", text)
    }

    pub fn green(&self, text: &str) -> String {
        self.with("32", text)
    }

    pub fn red(&self, text: &str) -> String {
        self.with("31", text)
    }

    /// Green for what is good, red for what is bad.
    pub fn by(&self, is_good: bool, text: &str) -> String {
        if is_good { self.green(text) } else { self.red(text) }
    }
}
