//! The command line: arguments, files, terminal and exit status, and nothing else.
//!
//! Every command is a function from what was typed to a text for standard output, or a
//! [`Failure`](failure::Failure). Only this crate looks at files, the terminal, the wall clock and
//! the environment.

mod args;
mod catalogue;
mod chakra;
mod claims;
mod collective;
mod columns;
mod compare;
mod elasticities;
mod failure;
mod files;
mod goodput;
mod input;
mod jobs;
mod messages;
mod planner;
mod plot;
mod replay;
mod run;
mod serve;
mod sweep;
mod terminal;
mod topology;
mod trace;
mod validate;

use args::{Cli, Command, Document, Validate};
use clap::{CommandFactory, Parser};
use failure::Failure;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let colored = terminal::colored_messages(cli.color);
    match failure::guarded(AssertUnwindSafe(|| execute(&cli))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            match &failure {
                Failure::Run(text) | Failure::Input(text) => {
                    files::tell(&messages::draw(text, colored))
                }
                Failure::ReaderGone => {}
            }
            failure.status()
        }
    }
}

fn execute(cli: &Cli) -> Result<(), Failure> {
    match &cli.command {
        Command::Run { args, trace } => run::run(args, trace, cli.color),
        Command::Elasticities(args) => elasticities::run(args, cli.color),
        Command::Sweep(args) => sweep::sweep(args, cli.color),
        Command::Compare(args) => compare::run(args),
        Command::Plan(args) => planner::run(args, cli.color),
        Command::Check { scenarios } => run::check(scenarios, cli.color),
        Command::Collective(args) => collective::collective(args),
        Command::List { kind, format } => {
            files::print(&catalogue::list(*kind, *format, terminal::style(cli.color)))
        }
        Command::Show { name, format } => files::print(&catalogue::show(name, *format)?),
        Command::Topology(args) => topology::topology(args, cli.color),
        Command::Route(args) => topology::route(args, cli.color),
        Command::Validate {
            what: Validate::Training(args),
        } => files::print(&validate::training(args).map_err(Failure::from)?),
        Command::Validate {
            what: Validate::Mechanisms(args),
        } => files::print(&validate::mechanisms(args).map_err(Failure::from)?),
        Command::Validate {
            what: Validate::Serving(args),
        } => files::print(&validate::serving(args).map_err(Failure::from)?),
        Command::Validate {
            what: Validate::Collectives(args),
        } => files::print(&validate::collectives(args).map_err(Failure::from)?),
        Command::Validate {
            what: Validate::Kernels(args),
        } => files::print(&validate::kernels(args).map_err(Failure::from)?),
        Command::Plot(args) => plot::plot(args),
        Command::Claims(args) => claims::claims(args),
        Command::Schema { of } => files::print(&schema(*of)),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "rackflow", &mut script);
            files::print(&String::from_utf8_lossy(&script))
        }
    }
}

fn schema(of: Document) -> String {
    let schema = match of {
        Document::Scenario => rackflow_scenario::scenario_schema(),
        Document::Sweep => rackflow_scenario::sweep_schema(),
        Document::Report => rackflow_report::Report::schema(),
        Document::ServingReport => rackflow_report::ServingReport::schema(),
        Document::JobsReport => rackflow_report::JobsReport::schema(),
        Document::ReplayReport => rackflow_report::ReplayReport::schema(),
        Document::Elasticities => rackflow_report::Elasticities::schema(),
        Document::ServingElasticities => rackflow_report::ServingElasticities::schema(),
        Document::JobsElasticities => rackflow_report::JobsElasticities::schema(),
    };
    format!("{schema:#}\n")
}

impl From<validate::ValidateError> for Failure {
    fn from(error: validate::ValidateError) -> Self {
        match error {
            validate::ValidateError::Threads(_) => Self::run(error),
            _ => Self::input(error),
        }
    }
}
