//! What a client got: the one form in which curl's and the raw connection's answers are looked at.

/// An HTTP answer.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The status code; 0 if there was no answer.
    pub status: u16,
    /// The headers in order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body's bytes.
    pub body: Vec<u8>,
}

impl Answer {
    /// Reads a head, without its empty line. `None` if that is no answer's head.
    pub fn from_head(head: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(head);
        let mut lines = text.lines();
        let status = lines.next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Some(Self { status, headers, body: Vec::new() })
    }

    /// The first header of that name, given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Whether the guard gave this answer, and not the cloud.
    pub fn is_refusal(&self) -> bool {
        self.status >= 400 && self.header(super::guard::MARK).is_some()
    }
}

/// Where the empty line ends in `bytes`, if it has come.
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}
