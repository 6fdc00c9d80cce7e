//! `v1`: where lending a token undoes what tokens are for, and where the key says nothing.

use super::super::agent::{Agent, Cgroups};
use super::super::decision::Mode;
use super::super::diagnostic::Report;
use super::super::session::V1;
use super::Lint;
use crate::cloud::Selection;

/// Programs that answer requests from elsewhere, and that have been talked into fetching URLs: web servers, proxies,
/// and what runs applications behind them. One of these as a word of a unit's or an executable's name will do.
const SERVERS: [&str; 30] = [
    "angie",
    "apache",
    "caddy",
    "daphne",
    "envoy",
    "fpm",
    "gunicorn",
    "haproxy",
    "httpd",
    "hypercorn",
    "jboss",
    "jetty",
    "lighttpd",
    "litespeed",
    "lsws",
    "nginx",
    "nodejs",
    "openresty",
    "passenger",
    "pm",
    "puma",
    "squid",
    "tomcat",
    "traefik",
    "unicorn",
    "uvicorn",
    "uwsgi",
    "varnish",
    "varnishd",
    "wildfly",
];

/// The same where the word is the whole name; elsewhere it means a machine of a cluster, or anything.
const WHOLE: [&str; 4] = ["deno", "h2o", "node", "unit"];

impl Lint<'_> {
    pub(super) fn v1(&self, report: &mut Report<'_>) {
        for drafted in &self.draft.agents {
            let place = drafted.v1.as_ref().unwrap_or(&drafted.place);
            let v1 = drafted.agent.v1.unwrap_or(self.v1);
            if v1 == V1::Upgrade
                && let Some(server) = server(&drafted.agent)
            {
                let name = &drafted.agent.name;
                report
                    .warning(
                        "v1-upgrade-for-web-server",
                        format!("agent `{name}` is a web server (`{server}`), and whoever makes it fetch a URL gets a token lent"),
                        place,
                    )
                    .help("session tokens are there to stop exactly that: let it speak version 2, and set v1 = \"deny\"");
            }
        }
        self.v1_without_effect(report);
    }

    fn v1_without_effect(&self, report: &mut Report<'_>) {
        let general = self.documents.first().and_then(|main| {
            let v1 = main.v1.as_ref().filter(|_| self.v1 != V1::Allow)?;
            Some((self.v1, main.place(v1.span())))
        });
        let of_agents = self.draft.agents.iter().filter_map(|one| Some((one.agent.v1?, one.v1.clone()?)));
        let has_tokens = self.catalogue.clouds().iter().any(|cloud| cloud.session().is_some());
        let is_chosen = matches!(self.selection, Selection::Named(_));
        for (v1, place) in general.into_iter().chain(of_agents) {
            if is_chosen && !has_tokens {
                report
                    .warning("v1-has-no-effect", "none of the chosen clouds has session tokens", &place)
                    .help("version 1 and version 2 differ by those tokens alone");
            } else if v1 == V1::Upgrade && self.mode == Mode::Audit {
                report
                    .warning(
                        "v1-has-no-effect",
                        "in audit mode no request is changed, so none is upgraded",
                        &place,
                    )
                    .help("keep tokens optional at the cloud until the policy's mode is enforce");
            }
        }
    }
}

/// The web server that an agent is, by the names that it is known by.
fn server(agent: &Agent) -> Option<String> {
    let units = match &agent.place {
        Cgroups::Units(units) => units.iter().map(ToString::to_string).collect(),
        Cgroups::Literal(paths) => paths.iter().map(ToString::to_string).collect(),
        Cgroups::Anywhere => Vec::new(),
    };
    units.into_iter().chain(agent.exe.iter().map(ToString::to_string)).find(|name| is_server(name))
}

/// Whether the last component of a unit, a cgroup or an executable names a server, perhaps with a version: `php8.3-fpm`,
/// `tomcat10@shop.service`, `/usr/sbin/nginx`.
fn is_server(name: &str) -> bool {
    let last = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    let stem = last.strip_suffix(".service").or_else(|| last.strip_suffix(".scope")).unwrap_or(&last);
    let unversioned = |word: &str| word.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
    let template = stem.split('@').next().unwrap_or(stem);
    WHOLE.contains(&template)
        || WHOLE.contains(&unversioned(template).as_str())
        || stem.split(['-', '_', '@', '.']).any(|word| SERVERS.contains(&unversioned(word).as_str()))
}

#[cfg(test)]
mod tests {
    use super::is_server;

    #[test]
    fn servers_are_known_by_their_names_and_versions() {
        for yes in [
            "nginx.service",
            "apache2.service",
            "httpd.service",
            "php8.3-fpm.service",
            "php-fpm.service",
            "tomcat10.service",
            "gunicorn@shop.service",
            "uwsgi.service",
            "caddy.service",
            "haproxy.service",
            "node.service",
            "node@shop.service",
            "pm2-www.service",
            "/usr/sbin/nginx",
            "/usr/local/openresty/nginx/sbin/nginx",
            "/opt/node20/bin/node",
            "/system.slice/lighttpd.service",
            "apache2@*.service",
        ] {
            assert!(is_server(yes), "{yes}");
        }
        for no in [
            "amazon-ssm-agent.service",
            "nodeadm-run.service",
            "legacy-backup.service",
            "node_exporter.service",
            "aws-node-termination-handler.service",
            "/usr/bin/node_exporter",
            "/opt/nginx/bin/backup",
            "community.service",
            "graphd.service",
        ] {
            assert!(!is_server(no), "{no}");
        }
    }
}
