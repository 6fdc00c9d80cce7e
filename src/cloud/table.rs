//! What a cloud serves, as rows for people.

use super::class::Classes;
use super::service::Cloud;

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The path pattern, with the port before it and the condition behind it where there is one.
    pub path: String,
    /// What it touches.
    pub classes: Classes,
    /// The methods that touch nothing more.
    pub methods: String,
    /// Who usually needs it.
    pub who: Option<String>,
}

/// The cloud's resources in the order of its file; directories that merely list them are left out.
#[must_use]
pub fn table(cloud: &Cloud) -> Vec<Row> {
    let written = cloud.resources.iter().filter(|resource| !resource.listing);
    written
        .map(|resource| {
            let port = resource.port.map(|port| format!(":{port}")).unwrap_or_default();
            let condition = match resource.condition.to_string() {
                none if none.is_empty() => none,
                some => format!("  [{some}]"),
            };
            Row {
                path: format!("{port}{}{condition}", resource.pattern),
                classes: resource.classes,
                methods: resource.methods.join(" "),
                who: resource.who.clone(),
            }
        })
        .collect()
}
