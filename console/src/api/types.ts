// Names for the shapes of the API, from its OpenAPI document (`make console-types`).
import type { components } from "./schema";

type Schemas = components["schemas"];

export type Problem = Schemas["Problem"];
export type Session = Schemas["SessionView"];
export type Critique = Schemas["CritiqueView"];
export type CritiqueResult = Schemas["CritiqueResult"];
export type RefineResult = Schemas["RefineResult"];
export type Round = Schemas["RoundView"];
export type Step = Schemas["StepView"];
export type Interaction = Schemas["InteractionView"];
export type InteractionSummary = Schemas["InteractionSummary"];
export type InteractionPage = Schemas["InteractionPage"];
export type Feedback = Schemas["FeedbackView"];
export type Label = Schemas["LabelView"];
export type Vote = Schemas["VoteView"];
export type QueueItem = Schemas["QueueItem"];
export type Queue = Schemas["QueueView"];
export type Withdrawn = Schemas["WithdrawnView"];
export type Progress = Schemas["LabelProgress"];
export type Rate = Schemas["RateView"];
export type Critic = Schemas["CriticVersionView"];
export type CriticHistory = Schemas["CriticHistoryView"];
export type Reliability = Schemas["ReliabilityView"];
export type Swap = Schemas["SwapView"];
export type Receipt = Schemas["ReceiptView"];
export type State = Schemas["State"];
export type Readiness = Schemas["Readiness"];
export type Plan = Schemas["PlanView"];
export type Run = Schemas["RunView"];
export type RunSummary = Schemas["RunSummary"];
export type RunPage = Schemas["RunPage"];
export type ActPage = Schemas["ActPage"];
